// The race checker. Kernels are compiled with -fsanitize=thread but linked with the functions of
// race_hooks.cpp, which end in access() here. For every two bytes of the device it knows who wrote and who
// read last, and by vector clocks whether the access of now comes after that (FastTrack, Flanagan and Freund
// 2009). So one run under any schedule finds what is unordered, not only what goes wrong.
#include "race.hpp"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>
#include <unordered_map>

#include "device.hpp"
#include "grid.hpp"
#include "race_shadow.hpp"

namespace simt::race {
namespace {

// Values of clocks by index: of the threads of a block, or of its engines. Missing entries are 0.
using Times = std::vector<uint32_t>;

uint32_t at(const Times& times, size_t index) { return index < times.size() ? times[index] : 0; }

void join(Times& into, const Times& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

// Readers of a granule that do not know of each other: the time of each, by its index. Mostly they have read
// between the same two barriers and so at the same time: then a bit for each.
class ReaderList {
 public:
  void reset(size_t size) {
    size_ = size;
    time_ = 0;
    times_.clear();
    bits_.assign((size + 63) / 64, 0);
  }
  void add(unsigned index, uint32_t time) {
    if (times_.empty()) {
      if (time_ == 0) time_ = time;
      if (time_ == time) {
        bits_[index / 64] |= uint64_t(1) << index % 64;
        return;
      }
      times_.assign(size_, 0);
      each_bit([&](unsigned reader) { return times_[reader] = time_, false; });
    }
    times_[index] = time;
  }
  // The first for whom is_wanted(index, time); -1 if there is none.
  int find(const auto& is_wanted) const {
    if (times_.empty()) return each_bit([&](unsigned reader) { return is_wanted(reader, time_); });
    for (size_t i = 0; i < times_.size(); ++i)
      if (times_[i] != 0 && is_wanted(unsigned(i), times_[i])) return int(i);
    return -1;
  }

 private:
  int each_bit(const auto& stops) const {
    for (size_t word = 0; word < bits_.size(); ++word)
      for (uint64_t left = bits_[word]; left != 0; left &= left - 1) {
        const auto reader = unsigned(word * 64) + unsigned(std::countr_zero(left));
        if (stops(reader)) return int(reader);
      }
    return -1;
  }

  size_t size_ = 0;
  uint32_t time_ = 0;
  std::vector<uint64_t> bits_;
  Times times_;  // if they differ
};

struct BlockState;

// A thread, or an engine that works for one, whose index is the block's size and more.
struct Actor {
  BlockState* block = nullptr;
  unsigned index = 0;
  uint32_t now = 2;
  // Of the others: `base` of every thread, or `threads` if that is not empty.
  uint32_t base = 1;
  Times threads, engines;
  uint32_t proxy_fenced = 0;         // stores before this time can be read by engines
  Times fenced;                      // what its last fence has made ready for other blocks
  std::map<uint32_t, Times> blocks;  // what it has learnt of other blocks, by their serial numbers
};

struct BlockState {
  uint32_t serial = 0;
  uint3 index{};
  unsigned size = 0;
  std::vector<Actor> threads;
  Times engines_done;
  struct Known {
    Times threads, engines;
  };
  std::unordered_map<const void*, Known> released;
};

struct Published {
  uint32_t serial;
  Times times;
};

std::unordered_map<const Block*, std::unique_ptr<BlockState>> blocks;
std::vector<uint3> block_indices;  // of the launch, by serial - first_serial
uint32_t serials = 0, first_serial = 1, engine_time = 1;
std::unordered_map<const void*, std::vector<Published>> published;  // by the address of an atomic
std::vector<ReaderList> reader_lists(1);
std::vector<uint32_t> spare_lists;

Actor* engine = nullptr;  // that acts now

Actor* actor() {
  if (engine != nullptr) return engine;
  return current_thread != nullptr ? static_cast<Actor*>(current_thread->race) : nullptr;
}

bool is_engine(const Actor& self) { return self.index >= self.block->size; }

uint32_t known(const Actor& self, unsigned index) {
  if (index >= self.block->size) return at(self.engines, index - self.block->size);
  return self.threads.empty() ? self.base : self.threads[index];
}

Times known_threads(const Actor& self) {
  Times times = self.threads;
  if (times.empty()) times.assign(self.block->size, self.base);
  if (!is_engine(self)) times[self.index] = self.now;
  return times;
}

bool is_ordered(const Actor& self, uint32_t serial, unsigned index, uint32_t time) {
  if (serial < first_serial) return true;  // an earlier launch or a copy: streams order those
  if (serial == self.block->serial) return index == self.index || time <= known(self, index);
  const auto learnt = self.blocks.find(serial);
  return learnt != self.blocks.end() && time <= at(learnt->second, index);
}

// ---- reports ----

struct EngineStopped {};

// What an engine does wrong has no thread to stop.
[[noreturn, gnu::cold]] void report(const std::string& kind, const std::string& text) {
  if (engine == nullptr) fail_here(kind, text);
  record_error(kind, text);
  throw EngineStopped();
}

std::string describe_actor(const Actor& self, uint32_t serial, unsigned index) {
  const uint3 b = block_indices[serial - first_serial];
  std::string name = "thread " + std::to_string(index);
  if (index == self.block->size + kCopyEngine)
    name = "the copy engine";
  else if (index > self.block->size)
    name = "the tensor core of warpgroup " + std::to_string(index - self.block->size - kFirstTensorCore);
  return name + " of block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) +
         ")";
}

// An instruction that touches memory.
struct Access {
  const void* address;
  size_t bytes;
  Kind kind;
  uint32_t where;
};

// What `self` does now, and where.
std::string describe_access(const Actor& self, const Access& now) {
  std::string memory = "shared memory";
  if ((flags_of(granule_of(now.address)) & kShared) == 0) {
    Allocation* allocation = find_allocation(now.address);
    memory =
        allocation != nullptr ? "'" + name_at(*allocation, now.address) + "'" : "memory that is nobody's";
  }
  const char* verb = now.kind == Kind::read ? "read" : now.kind == Kind::write ? "write" : "atomic";
  return std::string(verb) + " of " + std::to_string(now.bytes) + " bytes of " + memory + " at " +
         place_of(now.where) + " by " + describe_actor(self, self.block->serial, self.index);
}

struct Earlier {
  bool write;
  uint32_t serial;
  unsigned index;
  uint32_t where;
};

[[noreturn, gnu::cold]] void report_race(const char* kind, const Actor& self, const Access& now,
                                         const Earlier& then) {
  report(kind, describe_access(self, now) + ",\n  against the " + (then.write ? "write" : "read") + " at " +
                   place_of(then.where) + " by " + describe_actor(self, then.serial, then.index));
}

// ---- one granule ----

bool has_readers(const Cell& cell) { return cell.reader_serial >= first_serial; }

void drop_readers(Cell& cell) {
  if (has_readers(cell) && cell.reader_index == kSeveral) spare_lists.push_back(cell.reader_time);
  cell.reader_serial = 0;
}

void add_reader(Cell& cell, const Actor& self, uint32_t where) {
  const bool same_block = cell.reader_serial == self.block->serial, several = cell.reader_index == kSeveral;
  if (several && same_block) {
    reader_lists[cell.reader_time].add(self.index, self.now);
    return;
  }
  if (several || !has_readers(cell) ||
      is_ordered(self, cell.reader_serial, cell.reader_index, cell.reader_time)) {
    drop_readers(cell);
    cell.reader_serial = self.block->serial;
    cell.reader_index = uint16_t(self.index);
    cell.reader_time = self.now;
    cell.reader_where = where;
    return;
  }
  if (!same_block) return;  // a second block: the first is kept, since blocks run one after another
  uint32_t list;
  if (spare_lists.empty()) {
    list = uint32_t(reader_lists.size());
    reader_lists.emplace_back();
  } else {
    list = spare_lists.back();
    spare_lists.pop_back();
  }
  reader_lists[list].reset(self.block->size + kFirstTensorCore + self.block->size / kWarpgroup);
  reader_lists[list].add(cell.reader_index, cell.reader_time);
  reader_lists[list].add(self.index, self.now);
  cell.reader_time = list;
  cell.reader_index = kSeveral;
}

// The reader that `self` does not know of, if there is one.
bool find_unordered_reader(const Cell& cell, const Actor& self, Earlier& found) {
  if (!has_readers(cell)) return false;
  found = {false, cell.reader_serial, cell.reader_index, cell.reader_where};
  if (cell.reader_index != kSeveral)
    return !is_ordered(self, cell.reader_serial, cell.reader_index, cell.reader_time);
  const int reader = reader_lists[cell.reader_time].find(
      [&](unsigned index, uint32_t time) { return !is_ordered(self, cell.reader_serial, index, time); });
  found.index = unsigned(reader);
  return reader >= 0;
}

// Does not return if something is wrong.
void check_granule(size_t granule, const Actor& self, const Access& now) {
  const Cell& cell = cell_of(granule);
  const uint8_t flags = flags_of(granule);
  const char* problem = (flags & kAddressable) == 0                          ? "out of bounds"
                        : now.kind != Kind::write && (flags & kDefined) == 0 ? "uninitialised read"
                                                                             : nullptr;
  if (problem != nullptr) report(problem, describe_access(self, now));
  const Earlier writer{true, cell.writer_serial, cell.writer_index, cell.writer_where};
  const bool both_atomic = now.kind == Kind::atomic && (flags & kAtomic) != 0;
  if (!both_atomic && !is_ordered(self, cell.writer_serial, cell.writer_index, cell.writer_time))
    report_race("race", self, now, writer);
  if (is_engine(self) && now.kind == Kind::read && writer.serial == self.block->serial &&
      writer.index < self.block->size && self.block->threads[writer.index].proxy_fenced <= cell.writer_time)
    report_race("missing fence.proxy.async", self, now, writer);
  Earlier reader;
  if (now.kind != Kind::read && find_unordered_reader(cell, self, reader))
    report_race("race", self, now, reader);
}

void note(size_t granule, const Actor& self, const Access& now) {
  Cell& cell = cell_of(granule);
  if (now.kind == Kind::read) return add_reader(cell, self, now.where);
  drop_readers(cell);
  uint8_t& flags = flags_of(granule);
  flags = uint8_t((flags & ~kAtomic) | kDefined | (now.kind == Kind::atomic ? kAtomic : 0));
  cell.writer_serial = self.block->serial;
  cell.writer_index = uint16_t(self.index);
  cell.writer_time = self.now;
  cell.writer_where = now.where;
}

void device_access(const Actor& self, const Access& now) {
  const size_t last = granule_of(static_cast<const char*>(now.address) + now.bytes - 1);
  for (size_t granule = granule_of(now.address); granule <= last; ++granule) {
    const Cell& cell = cell_of(granule);
    // The same thread reads again, with nothing in between.
    if (now.kind == Kind::read && cell.reader_serial == self.block->serial &&
        cell.reader_index == self.index && cell.reader_time == self.now)
      continue;
    check_granule(granule, self, now);
    note(granule, self, now);
  }
}

// Atomics on one address order blocks: what a block has fenced before is known after.
void publish(Actor& self, const void* address) {
  auto& entries = published[address];
  for (const Published& entry : entries)
    if (entry.serial != self.block->serial) join(self.blocks[entry.serial], entry.times);
  Times visible = self.fenced;
  const Times mine = known_threads(self);
  for (const Actor& thread : self.block->threads) {
    const uint32_t own = at(thread.fenced, thread.index);
    if (own == 0) continue;
    if (visible.size() <= thread.index) visible.resize(thread.index + 1);
    visible[thread.index] = std::max(visible[thread.index], std::min(own, mine[thread.index]));
  }
  if (!visible.empty()) entries.push_back({self.block->serial, std::move(visible)});
}

}  // namespace

void access(const void* address, size_t bytes, Kind kind, uint32_t where) {
  if (!in_arena(address)) return;
  Actor* self = actor();
  if (self == nullptr) return order_host_access(address, bytes, kind, where);
  device_access(*self, {address, bytes, kind, where});
  if ((flags_of(granule_of(address)) & kShared) != 0) return;
  const std::string wrong = order_device_access(address, bytes, kind);
  if (!wrong.empty()) report("unordered access", wrong + "\n  at " + place_of(where));
}

void touch(const void* address, size_t bytes, Kind kind, Place place) {
  if (!in_arena(address)) return;
  Actor* self = actor();
  if (self != nullptr && kind == Kind::atomic) publish(*self, address);
  access(address, bytes, kind, id_of(place));
}

// ---- what orders ----

void start_launch() {
  first_serial = serials + 1;
  block_indices.clear();
  published.clear();
  spare_lists.resize(reader_lists.size() - 1);  // those of earlier launches: all
  std::iota(spare_lists.begin(), spare_lists.end(), 1u);
}

void start_block(Block& block) {
  auto state = std::make_unique<BlockState>();
  state->serial = ++serials;
  state->index = block.index;
  state->size = block.size;
  state->threads.resize(block.size);
  for (unsigned i = 0; i < block.size; ++i) {
    state->threads[i].block = state.get();
    state->threads[i].index = i;
    block.threads[i]->race = &state->threads[i];
  }
  block_indices.push_back(block.index);
  blocks[&block] = std::move(state);
}

void end_block(Block& block) {
  for (const SharedArray& array : block.shared_arrays)
    mark(array.band_begin, size_t(array.band_end - array.band_begin), Bytes::nobodys);
  blocks.erase(&block);
}

void met(std::span<Thread* const> threads) {
  BlockState& block = *static_cast<Actor*>(threads[0]->race)->block;
  Times joined, engines;
  std::map<uint32_t, Times> learnt;
  uint32_t latest = 0;
  const bool all = threads.size() == block.size;
  for (const Thread* thread : threads) {
    Actor& member = *static_cast<Actor*>(thread->race);
    if (!all) join(joined, known_threads(member));
    join(engines, member.engines);
    latest = std::max(latest, member.now);
    for (const auto& [serial, times] : member.blocks) join(learnt[serial], times);
  }
  for (const Thread* thread : threads) {
    Actor& member = *static_cast<Actor*>(thread->race);
    member.blocks = learnt;
    member.engines = engines;
    member.threads = joined;
    if (all) {
      member.base = latest;
      member.now = latest + 1;
    } else {
      ++member.now;
    }
  }
}

void fence() {
  Actor& self = *actor();
  self.fenced = known_threads(self);
  ++self.now;
}

void proxy_fence() {
  Actor& self = *actor();
  self.proxy_fenced = ++self.now;
}

void release(Block& block, const void* object) {
  Actor& self = *actor();
  BlockState::Known& known = blocks.at(&block)->released[object];
  join(known.threads, known_threads(self));
  join(known.engines, self.engines);
  if (!is_engine(self)) {
    ++self.now;
    return;
  }
  const unsigned number = self.index - block.size;
  if (known.engines.size() <= number) known.engines.resize(number + 1);
  known.engines[number] = self.now;
}

void acquire(const void* object) {
  Actor& self = *actor();
  const auto found = self.block->released.find(object);
  if (found == self.block->released.end()) return;
  self.threads = known_threads(self);
  join(self.threads, found->second.threads);
  join(self.engines, found->second.engines);
}

// ---- engines ----

Snapshot snapshot() {
  Actor& self = *actor();
  auto copy = std::make_shared<Actor>(self);
  copy->threads = known_threads(self);
  ++self.now;
  return copy;
}

void run_as_engine(const Snapshot& issuer, Block& block, unsigned number, const std::function<void()>& work) {
  Actor acting = *static_cast<const Actor*>(issuer.get());
  acting.index = block.size + number;
  acting.now = ++engine_time;
  engine = &acting;
  try {
    work();
  } catch (const EngineStopped&) {
  }
  engine = nullptr;
  Times& done = acting.block->engines_done;
  if (done.size() <= number) done.resize(number + 1);
  done[number] = acting.now;
}

void join_engine(unsigned number) {
  Actor& self = *actor();
  if (self.engines.size() <= number) self.engines.resize(number + 1);
  self.engines[number] = at(self.block->engines_done, number);
}

}  // namespace simt::race
