// The arena of the race checker, its shadow, and the order of whole operations to 8 bytes.
#include "race_shadow.hpp"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>

#include "device.hpp"
#include "grid.hpp"

namespace simt::race {

Shadow shadow{~uintptr_t(0) - kArenaBytes, nullptr, nullptr,
              nullptr};  // until the arena is reserved, no address

// Which operations have written and read 8 bytes last, by their numbers in `uses`; 0: none. Two readers are
// kept, which is what two streams or a stream and the host can be.
struct Order8 {
  uint32_t written, read[2];
};

namespace {

constexpr size_t kPage = 4096, kOrderGranule = 8;

template <class T>
T* reserve(size_t bytes, int access) {
  void* memory = mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Error("simt: no address space for the race checker");
  return static_cast<T*>(memory);
}

struct Arena {
  char* begin = reserve<char>(kArenaBytes, PROT_NONE);
  size_t used = 0;
  std::multimap<size_t, char*> free;  // by size

  Arena() {
    shadow = {reinterpret_cast<uintptr_t>(begin),
              reserve<uint8_t>(kArenaBytes / kGranule, PROT_READ | PROT_WRITE),
              reserve<Cell>(kArenaBytes / kGranule * sizeof(Cell), PROT_READ | PROT_WRITE),
              reserve<Order8>(kArenaBytes / kOrderGranule * sizeof(Order8), PROT_READ | PROT_WRITE)};
  }
};

Arena& arena() {
  static Arena instance;
  return instance;
}

// An operation, or what the host did between two calls of the runtime at one place.
struct Use {
  size_t slot;
  uint32_t sequence;
  std::shared_ptr<const Operation> operation;
};
std::vector<Use> uses(1);
std::map<uint32_t, uint32_t> host_uses;  // of the host's present time: number by place
uint32_t host_time = 0;

std::vector<Place>& places() {
  static std::vector<Place> all;
  return all;
}
constexpr uint32_t kIsPlace = 0x80000000u;

uintptr_t image_base() {
  static const uintptr_t base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&image_base), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

}  // namespace

// ---- places ----

uint32_t id_of(uintptr_t return_address) { return uint32_t(return_address - image_base()); }

uint32_t id_of(Place place) {
  auto& all = places();
  for (size_t i = all.size(); i-- > 0;)
    if (all[i].line() == place.line() && all[i].file_name() == place.file_name())
      return kIsPlace | uint32_t(i);
  all.push_back(place);
  return kIsPlace | uint32_t(all.size() - 1);
}

namespace {

// Of code: asks addr2line, which reads all that is known of the program.
std::string find_place(uint32_t id) {
  char program[4096], command[4400], line[1024];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  program[std::max<ssize_t>(length, 0)] = 0;
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%x 2>/dev/null", program, id - 1);
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "?";
  std::string found;
  while (std::fgets(line, sizeof line, pipe) != nullptr) {  // from the inlined to what inlines it
    std::string text = line;
    text.erase(text.find_first_of(" \n"));  // "(discriminator 3)"
    const bool toolkit =
        text.find("/usr/") == 0 || text.find("tests/simt/cuda_runtime.h") != std::string::npos;
    if (toolkit || text[0] == '?') continue;
    text = text.substr(text.rfind('/') + 1);
    if (found.empty())
      found = text;
    else if (found.find(text) == std::string::npos)
      found += " < " + text;
  }
  pclose(pipe);
  return found.empty() ? "?" : found;
}

}  // namespace

std::string place_of(uint32_t id) {
  static std::map<uint32_t, std::string> known = {{0, "?"}};
  if ((id & kIsPlace) != 0) return file_and_line(places()[id & ~kIsPlace]);
  const auto found = known.find(id);
  return found != known.end() ? found->second : known[id] = find_place(id);
}

// ---- the arena ----

void* map_memory(size_t bytes) {
  Arena& a = arena();
  bytes = (bytes + kPage - 1) / kPage * kPage;
  const auto spare = a.free.find(bytes);
  if (spare != a.free.end()) {
    char* memory = spare->second;
    a.free.erase(spare);
    return memory;
  }
  if (a.used + bytes > kArenaBytes) return nullptr;
  char* memory = a.begin + a.used;
  a.used += bytes;
  return memory;
}

void unmap_memory(void* memory, size_t bytes) {
  Arena& a = arena();
  bytes = (bytes + kPage - 1) / kPage * kPage;
  mark(memory, bytes, Bytes::nobodys);
  std::memset(static_cast<void*>(shadow.order + size_t(static_cast<char*>(memory) - a.begin) / kOrderGranule),
              0, bytes / kOrderGranule * sizeof(Order8));
  madvise(memory, bytes, MADV_DONTNEED);
  mprotect(memory, bytes, PROT_NONE);
  a.free.emplace(bytes, static_cast<char*>(memory));
}

void mark(const void* address, size_t bytes, Bytes what, bool shared) {
  if (bytes == 0 || !in_arena(address)) return;
  const auto* begin = static_cast<const char*>(address);
  const auto* end = begin + bytes;
  if (what == Bytes::nobodys) {  // a byte beside somebody's byte stays open
    begin += reinterpret_cast<uintptr_t>(begin) % kGranule;
    end -= reinterpret_cast<uintptr_t>(end) % kGranule;
    if (begin >= end) return;
  }
  const size_t first = granule_of(begin), last = granule_of(end - 1);
  const int flags = (what == Bytes::nobodys   ? 0
                     : what == Bytes::defined ? kAddressable | kDefined
                                              : kAddressable) |
                    (shared ? kShared : 0);
  std::memset(&flags_of(first), flags, last - first + 1);
  // Another block of the same launch may have had the same shared memory.
  if (shared) std::memset(static_cast<void*>(&cell_of(first)), 0, (last - first + 1) * sizeof(Cell));
}

void undefine(const void* address, size_t bytes) {
  if (!in_arena(address)) return;
  const size_t last = granule_of(static_cast<const char*>(address) + bytes - 1);
  for (size_t granule = granule_of(address); granule <= last; ++granule)
    flags_of(granule) = uint8_t(flags_of(granule) & ~kDefined);
}

// ---- the order of operations ----

namespace {

const Use& use(uint32_t number) { return uses[number]; }

uint32_t number_of(const Operation& operation) {
  if (operation.number == 0) {
    operation.number = uint32_t(uses.size());
    uses.push_back({operation.slot, operation.sequence, std::make_shared<const Operation>(operation)});
  }
  return operation.number;
}

uint32_t number_of_host(uint32_t where) {
  const uint32_t now = device().host[0];
  if (now != host_time) host_uses.clear();
  host_time = now;
  uint32_t& number = host_uses[where];
  if (number == 0) {
    number = uint32_t(uses.size());
    Operation host{};
    host.name = "host code at " + place_of(where);
    uses.push_back({0, now, std::make_shared<const Operation>(std::move(host))});
  }
  return number;
}

// The operation that `known` does not order before the access; 0: none.
uint32_t unordered_use(const Order8& order, bool write, uint32_t self, const Clock& known) {
  const auto is_unordered = [&](uint32_t other) {
    return other != 0 && other != self && use(other).sequence > known[use(other).slot];
  };
  if (is_unordered(order.written)) return order.written;
  if (!write) return 0;
  for (const uint32_t reader : order.read)
    if (is_unordered(reader)) return reader;
  return 0;
}

void note_use(Order8& order, bool write, uint32_t self, const Clock& known) {
  if (write) {
    order = {self, {0, 0}};
    return;
  }
  for (uint32_t& reader : order.read)
    if (reader == 0 || reader == self || use(reader).slot == use(self).slot ||
        use(reader).sequence <= known[use(reader).slot]) {
      reader = self;
      return;
    }
  order.read[0] = self;
}

// "" or what is wrong.
std::string order_access(const void* address, size_t bytes, bool write, uint32_t self, const Clock& known) {
  const size_t offset = size_t(reinterpret_cast<uintptr_t>(address) - shadow.begin);
  for (size_t i = offset / kOrderGranule; i <= (offset + bytes - 1) / kOrderGranule; ++i) {
    Order8& order = shadow.order[i];
    if (order.written == self || (!write && (order.read[0] == self || order.read[1] == self))) continue;
    if (const uint32_t other = unordered_use(order, write, self, known); other != 0) {
      Allocation* allocation = find_allocation(address);
      return unordered(allocation != nullptr ? name_at(*allocation, address) : "memory",
                       describe(*use(self).operation), write, {use(other).operation, other == order.written});
    }
    note_use(order, write, self, known);
  }
  return "";
}

}  // namespace

std::string order_device_access(const void* address, size_t bytes, Kind kind) {
  const Operation* running = device().running;
  if (running == nullptr || !options().check_order) return "";
  return order_access(address, bytes, kind != Kind::read, number_of(*running), running->known);
}

void order_host_access(const void* address, size_t bytes, Kind kind, uint32_t where) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  if (d.running != nullptr || d.failed || !d.pending.empty() || !options().check_order) return;
  const Allocation* allocation = find_allocation(address);
  if (allocation == nullptr) {
    d.pending = "simt: host code at " + place_of(where) + " touches memory that has been freed";
  } else if (!allocation->pinned) {
    d.pending = "simt: host code at " + place_of(where) + " touches device memory";
  } else {
    d.pending = order_access(address, bytes, kind != Kind::read, number_of_host(where), d.host);
    if (kind != Kind::read) mark(address, bytes, Bytes::defined);
  }
}

void forget_operations() {
  uses.resize(1);
  host_uses.clear();
  Arena& a = arena();
  std::memset(static_cast<void*>(shadow.order), 0, a.used / kOrderGranule * sizeof(Order8));
}

}  // namespace simt::race
