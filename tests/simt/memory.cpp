// Memory of the emulated device: exact sizes between guard bands, full of NaN at first, closed to host code
// while no operation of the device runs. Pinned memory is closed as far as the device may still use it.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "device.hpp"
#include "grid.hpp"
#include "kernels/core/annotate.hpp"
#include "race.hpp"

namespace simt {
namespace {

constexpr size_t kBand = 256;           // also the alignment of the data, and no better
constexpr size_t kPartAlignment = 256;  // of the parts of a slab
constexpr size_t kHugePage = size_t(2) << 20;

size_t page() {
  static const auto bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

unsigned char* page_of(const unsigned char* address) {
  return reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(address) / page() * page());
}

void protect(unsigned char* begin, unsigned char* end, int access) {
  begin = page_of(begin);
  end = page_of(end - 1) + page();
  if (mprotect(begin, size_t(end - begin), access) != 0) throw Error("simt: mprotect failed");
}

bool closable(const Allocation& a) { return !a.pinned && a.bytes <= options().closed_bytes; }

// Of a slab: the bytes between the end of a part and where the next can begin.
void set_gap(const Allocation& a, unsigned char* begin, race::Bytes what) {
  unsigned char* end = a.data + round_up(size_t(begin - a.data), kPartAlignment);
  end = std::min(end, a.data + a.bytes);
  const auto next = a.parts.lower_bound(begin);
  if (next != a.parts.end()) end = std::min(end, next->first);
  if (begin >= end) return;
  race::mark(begin, size_t(end - begin), what);
#if defined(SIMT_ASAN)
  if (what == race::Bytes::nobodys)
    __asan_poison_memory_region(begin, size_t(end - begin));
  else
    __asan_unpoison_memory_region(begin, size_t(end - begin));
#endif
}

void merge(Part& into, const Part& from) {
  into.touches.insert(into.touches.end(), from.touches.begin(), from.touches.end());
}

}  // namespace

void* map_pages(size_t bytes) {
  if (race::kEnabled) return race::map_memory(bytes);
  void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

void unmap_pages(void* memory, size_t bytes) {
  if (race::kEnabled)
    race::unmap_memory(memory, bytes);
  else
    munmap(memory, bytes);
}

Allocation* find_allocation(const void* address) {
  auto* p = static_cast<unsigned char*>(const_cast<void*>(address));
  auto& all = device().allocations;
  auto after = all.upper_bound(p);
  if (after == all.begin()) return nullptr;
  Allocation& allocation = std::prev(after)->second;
  return p <= allocation.data + allocation.bytes ? &allocation : nullptr;
}

std::vector<Part*> parts_of(Allocation& allocation, const Access& access) {
  auto* first = static_cast<unsigned char*>(const_cast<void*>(access.address));
  if (first >= allocation.data + allocation.bytes) return {};  // of an array without elements
  unsigned char* end = first + std::max<int64_t>(access.bytes, 1);
  std::vector<Part*> found;
  unsigned char* covered = first;
  auto part = allocation.parts.upper_bound(first);
  if (part != allocation.parts.begin()) --part;
  for (; part != allocation.parts.end() && part->first < end; ++part) {
    unsigned char* part_end = part->first + part->second.bytes;
    if (part_end <= first) continue;
    found.push_back(&part->second);
    if (part->first > covered) found.push_back(&allocation.rest);
    covered = std::max(covered, part_end);
  }
  if (covered < end) found.push_back(&allocation.rest);
  return found;
}

unsigned char* end_of_part(const Allocation& a, const unsigned char* address) {
  for (const auto& [begin, part] : a.parts)
    if (begin <= address && address < begin + part.bytes) return begin + part.bytes;
  return a.data + a.bytes;
}

std::string name_at(Allocation& allocation, const void* address) {
  const std::vector<Part*> parts = parts_of(allocation, reads(address));
  return parts.empty() ? allocation.rest.name : parts[0]->name;
}

Allocation* allocate_memory(size_t bytes, bool pinned) {
  Device& d = device();
  if (!pinned && d.allocated_bytes + bytes > options().device_bytes) return nullptr;
  // Large memory in huge pages: opening and closing it costs by the page.
  const size_t unit = bytes >= kHugePage ? kHugePage : page();
  Allocation a;
  const size_t usable = round_up(kBand + bytes + kBand, unit);
  a.mapping_bytes = usable + 2 * unit;
  a.mapping = map_pages(a.mapping_bytes);
  if (a.mapping == nullptr) return nullptr;
  a.begin = reinterpret_cast<unsigned char*>(round_up(reinterpret_cast<uintptr_t>(a.mapping) + page(), unit));
  a.end = a.begin + usable;
  if (unit == kHugePage) madvise(a.begin, usable, MADV_HUGEPAGE);
  protect(a.begin, a.end, PROT_READ | PROT_WRITE);
  a.data = a.begin + kBand;
  a.bytes = bytes;
  a.pinned = pinned;
  a.rest.name = pinned ? "pinned memory" : "device memory";
  fill_band(a.begin, a.data);
  std::memset(a.data, 0xFF, bytes);
  fill_band(a.data + bytes, a.data + bytes + kBand);
#if defined(SIMT_ASAN)
  __asan_poison_memory_region(a.begin, kBand);
  __asan_poison_memory_region(a.data + bytes, size_t(a.end - a.data) - bytes);
#endif
  race::mark(a.data, bytes, race::Bytes::undefined);
  if (!pinned) d.allocated_bytes += bytes;
  return &d.allocations.emplace(a.data, std::move(a)).first->second;
}

void free_memory(void* data) {
  Device& d = device();
  auto found = d.allocations.find(static_cast<unsigned char*>(data));
  if (found == d.allocations.end()) throw Error("simt: memory is freed that was not allocated");
  Allocation& a = found->second;
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(a.begin, size_t(a.end - a.begin));
#endif
  if (!a.pinned) d.allocated_bytes -= a.bytes;
  unmap_pages(a.mapping, a.mapping_bytes);
  d.allocations.erase(found);
}

// ---- open and closed ----

namespace {
void open_allocation(Allocation& a) {
  a.used = true;
  if (a.open) return;
  protect(a.begin, a.end, PROT_READ | PROT_WRITE);
  a.open = true;
}
}  // namespace

void open_memory(const std::vector<Access>& accesses) {
  for (const Access& access : accesses)
    if (Allocation* a = find_allocation(access.address)) open_allocation(*a);
}

void close_memory() {
  for (auto& [data, a] : device().allocations) {
    if (!a.open) continue;
    if (closable(a)) {
      protect(a.begin, a.end, PROT_NONE);
      a.open = false;
    }
    for (const Allocation::Hold& hold : a.holds) {
      // Where holds overlap, the stricter one counts.
      const bool write = std::any_of(a.holds.begin(), a.holds.end(), [&](const Allocation::Hold& other) {
        return other.touch.write && other.begin < hold.end && hold.begin < other.end;
      });
      protect(hold.begin, hold.end, write ? PROT_NONE : PROT_READ);
      a.open = false;
    }
  }
}

void hold_pinned(const Access& access, const Touch& touch) {
  Allocation& a = *find_allocation(access.address);
  auto* begin = static_cast<unsigned char*>(const_cast<void*>(access.address));
  auto* end = begin + access.bytes;
  if (access.bytes == 0) end = end_of_part(a, begin);
  if (begin == end || !options().check_order) return;
  a.holds.push_back({begin, end, touch});
  open_allocation(a);  // for close_memory() to see
}

void release_holds() {
  Device& d = device();
  for (auto& [data, a] : d.allocations) {
    const size_t released = std::erase_if(a.holds, [&](const Allocation::Hold& hold) {
      return hold.touch.operation->sequence <= d.host[hold.touch.operation->slot];
    });
    if (released != 0) open_allocation(a);
  }
}

void check_bands() {
#if !defined(SIMT_ASAN)
  for (auto& [data, a] : device().allocations) {
    if (!a.used) continue;
    open_allocation(a);
    a.used = false;
    if (!band_is_whole(a.begin, a.data)) throw Error("simt: write before the start of '" + a.rest.name + "'");
    if (!band_is_whole(data + a.bytes, data + a.bytes + kBand))
      throw Error("simt: write past the end of '" +
                  (a.parts.empty() ? a.rest.name : std::prev(a.parts.end())->second.name) + "'");
  }
#endif
}

// ---- faults ----

namespace {

struct sigaction previous_action;
std::string fault_text;

// Notes the error, opens the memory and lets the access go on, so that the next call of the runtime can
// throw.
bool note_closed_access(unsigned char* address, bool write) {
  Device& d = device();
  // While an operation runs, whoever runs it holds the mutex and may wait for this thread.
  std::unique_lock lock(d.mutex, std::defer_lock);
  if (d.running == nullptr) lock.lock();
  Allocation* a = find_allocation(address);
  if (a == nullptr || a->open) return false;
  std::string text;
  if (!a->pinned) {
    text = "simt: " + (d.running != nullptr ? describe(*d.running) : std::string("host code")) +
           " touches device memory '" + name_at(*a, address) + "'" +
           (d.running != nullptr ? ", which its arguments do not name" : "");
  } else {
    for (const Allocation::Hold& hold : a->holds)
      if (hold.begin <= address && address < hold.end && (write || hold.touch.write))
        text = unordered(name_at(*a, address), "host code", write, hold.touch);
  }
  protect(a->begin, a->end, PROT_READ | PROT_WRITE);
  a->open = a->used = true;
  if (!text.empty() && d.pending.empty()) d.pending = text;
  return true;
}

std::string describe_fault(const unsigned char* address) {
  for (const auto& [data, a] : device().allocations) {
    const auto* low = static_cast<const unsigned char*>(a.mapping);
    if (address < low || address >= low + a.mapping_bytes) continue;
    return address < data ? std::to_string(data - address) + " bytes before '" + a.rest.name + "'"
                          : std::to_string(address - data) + " bytes after the start of '" + a.rest.name +
                                "', which has " + std::to_string(a.bytes);
  }
  const auto* low = reinterpret_cast<const unsigned char*>(current_thread->fiber.stack_low);
  if (address < low && address >= low - kStackGuard) return "the stack of the thread is full";
  return "an address that is nobody's";
}

void continue_after_fault() { fail_here("illegal address", fault_text); }

void on_fault(int, siginfo_t* info, void* raw) {
  auto* address = static_cast<unsigned char*>(info->si_addr);
#if defined(__x86_64__)
  auto& registers = static_cast<ucontext_t*>(raw)->uc_mcontext.gregs;
  const bool write = (registers[REG_ERR] & 2) != 0;
#else
  (void)raw;
  const bool write = true;
#endif
  if (note_closed_access(address, write)) return;
#if defined(__x86_64__)
  if (current_thread != nullptr) {  // goes on in continue_after_fault(), as if the kernel had called it
    fault_text = describe_fault(address);
    const Fiber& fiber = current_thread->fiber;
    registers[REG_RSP] = reinterpret_cast<greg_t>(fiber.stack_low + fiber.stack_bytes - 4096 - 8);
    registers[REG_RIP] = reinterpret_cast<greg_t>(continue_after_fault);
    return;
  }
#endif
  sigaction(SIGSEGV, &previous_action, nullptr);  // the access faults again, for whoever came before
}

}  // namespace

// Called often: test frameworks put their own handler around each test.
void install_fault_handler() {
  struct sigaction now {};
  sigaction(SIGSEGV, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_fault) return;
  previous_action = now;
  struct sigaction ours {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  stack_t stack{};
  sigaltstack(nullptr, &stack);
  if ((stack.ss_flags & SS_DISABLE) != 0) {
    static char memory[64 * 1024];
    stack = {};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, nullptr);
  }
  sigaction(SIGSEGV, &ours, nullptr);
}

}  // namespace simt

namespace vqlab {

void name_memory(const void* memory, int64_t bytes, const char* name) {
  simt::Device& d = simt::device();
  const std::lock_guard lock(d.mutex);
  simt::Allocation* a = simt::find_allocation(memory);
  if (a == nullptr || bytes == 0) return;
  auto* begin = static_cast<unsigned char*>(const_cast<void*>(memory));
  if (begin == a->data && size_t(bytes) == a->bytes) {
    a->rest.name = name;
    return;
  }
  simt::Part named{size_t(bytes), name, a->rest.touches};
  for (auto part = a->parts.begin(); part != a->parts.end();) {
    if (part->first + part->second.bytes <= begin || part->first >= begin + bytes) {
      ++part;
      continue;
    }
    simt::set_gap(*a, part->first + part->second.bytes, simt::race::Bytes::defined);
    simt::merge(named, part->second);  // what is left of it goes to the rest
    simt::merge(a->rest, part->second);
    part = a->parts.erase(part);
  }
  a->parts.emplace(begin, std::move(named));
  simt::set_gap(*a, begin + bytes, simt::race::Bytes::nobodys);
}

}  // namespace vqlab
