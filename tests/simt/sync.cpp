// Barriers, warp meetings and the shared memory of blocks.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "grid.hpp"
#include "race.hpp"

namespace simt {
namespace {

constexpr size_t kBand = 64;
constexpr size_t kSharedArena = 512 * 1024;  // what a block may have, with bands around each array

bool same_place(Place a, Place b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void release_barrier(Block& block) {
  ++stats().barriers;
  race::met(block.waiting);
  block.gathered = block.gathering;
  block.gathering = {0, 1, 0};
  if (options().policy == Policy::priority && current_grid->random.below(4) == 0) redraw_priorities(block);
  for (Thread* thread : block.waiting) current_grid->ready.push(thread);
  block.waiting.clear();
}

}  // namespace

BarrierResult block_barrier(int predicate, Place at) {
  Block& block = *current_thread->block;
  if (block.live != block.size)
    fail("divergent barrier",
         std::to_string(block.size - block.live) + " threads of the block exited before this __syncthreads()",
         at);
  if (block.waiting.empty())
    block.barrier_place = at;
  else if (!same_place(block.barrier_place, at))
    fail("divergent barrier",
         "threads of one block wait at different __syncthreads(): " + file_and_line(block.barrier_place) +
             " and " + file_and_line(at),
         at);
  block.gathering.count += predicate != 0;
  block.gathering.all &= predicate != 0;
  block.gathering.any |= predicate != 0;
  block.waiting.push_back(current_thread);
  if (block.waiting.size() == block.live) release_barrier(block);
  wait_here("__syncthreads", at);
  return block.gathered;
}

unsigned lane() { return current_thread->lane; }

uint32_t active_mask() {
  const Warp& warp = current_thread->block->warps[current_thread->warp];
  return warp.existing & ~warp.exited;
}

namespace {

void finish(size_t index) {
  Thread& self = *current_thread;
  Block& block = *self.block;
  Warp& warp = block.warps[self.warp];
  OpenMeeting& meeting = warp.open[index];
  ++stats().collectives;
  meeting.function(meeting.present, meeting.arguments);
  const uint32_t others = meeting.present & ~(1u << self.lane);
  for (unsigned i = 0; i < kWarp; ++i) {
    const unsigned other = options().policy == Policy::reverse ? kWarp - 1 - i : i;
    if ((others >> other & 1) != 0) current_grid->ready.push(block.threads[self.warp * kWarp + other].get());
  }
  if (index + 1 != warp.open.size()) warp.open[index] = warp.open.back();
  warp.open.pop_back();
}

void check_mask(const char* name, uint32_t mask, const Warp& warp, Place at) {
  if ((mask >> current_thread->lane & 1) == 0)
    fail("bad mask", std::string(name) + ": the calling lane is not in its own mask", at);
  if ((mask & ~warp.existing) != 0)
    fail("bad mask", std::string(name) + ": the mask names lanes that this partial warp does not have", at);
  if ((mask & warp.exited) != 0)
    fail("divergent warp", std::string(name) + ": the mask names lanes that have exited", at);
}

}  // namespace

void meet(const char* name, uint32_t mask, Meeting function, void* argument, Place at) {
  const unsigned lane = current_thread->lane;
  const uint32_t me = 1u << lane;
  Warp& warp = current_thread->block->warps[current_thread->warp];
  check_mask(name, mask, warp, at);
  for (size_t i = 0; i < warp.open.size(); ++i) {
    OpenMeeting& open = warp.open[i];
    if (open.mask == mask && open.function == function && (open.present & me) == 0) {
      open.present |= me;
      open.arguments[lane] = argument;
      if (open.present != mask) return wait_here(name, at);
      finish(i);
      if (randomised() && current_grid->random.below(2) == 0) yield();
      return;
    }
    // It waits for this lane, which would wait for a lane that is stuck in it: say so while both places are
    // known. Anything less is legal, or ends as a deadlock.
    if ((open.mask & me) != 0 && (open.present & mask) != 0)
      fail("divergent warp",
           std::string("lanes of one warp meet in different operations: ") + open.name + " at " +
               file_and_line(open.place) + " and " + name + " at " + file_and_line(at),
           at);
  }
  OpenMeeting mine{};
  mine.name = name;
  mine.function = function;
  mine.mask = mask;
  mine.present = me;
  mine.place = at;
  mine.arguments[lane] = argument;
  warp.open.push_back(mine);
  if (mask == me) return finish(warp.open.size() - 1);
  wait_here(name, at);
}

void end_of_thread(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp];
  --block.live;
  warp.exited |= 1u << thread.lane;
  for (const OpenMeeting& open : warp.open)
    if ((open.mask >> thread.lane & 1) != 0)
      fail("divergent warp",
           std::string("a lane exited while its warp waits for it in ") + open.name + " at " +
               file_and_line(open.place),
           open.place);
  if (!block.waiting.empty())
    fail("divergent barrier",
         "a thread exited while others wait at __syncthreads() " + file_and_line(block.barrier_place),
         block.barrier_place);
}

void order_lanes(uint32_t present, void**) {
  if (!race::kEnabled) return;
  std::vector<Thread*> lanes;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if ((present >> lane & 1) != 0)
      lanes.push_back(current_thread->block->threads[current_thread->warp * kWarp + lane].get());
  race::met(lanes);
}

// ---- shared memory ----

namespace {
// The pattern by address, so that it reads as NaN at every alignment of a word.
unsigned char band_byte(const unsigned char* at) {
  static const unsigned char pattern[4] = {0xEE, 0xFF, 0xC0, 0xFF};
  return pattern[reinterpret_cast<uintptr_t>(at) & 3];
}
}  // namespace

void fill_band(unsigned char* begin, unsigned char* end) {
  for (; begin < end; ++begin) *begin = band_byte(begin);
}

bool band_is_whole(const unsigned char* begin, const unsigned char* end) {
  for (; begin < end; ++begin)
    if (*begin != band_byte(begin)) return false;
  return true;
}

namespace {

unsigned char* allocate_shared(Block& block, const void* key, size_t bytes, size_t alignment) {
  if (block.shared_memory == nullptr) {
    block.shared_memory = static_cast<unsigned char*>(map_pages(kSharedArena));
    if (block.shared_memory == nullptr ||
        mprotect(block.shared_memory, kSharedArena, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
  }
  // Aligned to exactly `alignment`, so that a float4 access to an array of float faults under UBSan.
  const size_t twice = 2 * alignment;
  const size_t offset = (block.shared_used + kBand + twice - 1) / twice * twice + alignment;
  unsigned char* data = block.shared_memory + offset;
  const SharedArray array{key, data, bytes, block.shared_memory + block.shared_used, data + bytes + kBand};
  if (offset + bytes + kBand > kSharedArena)
    fail("launch", "shared memory over 227 KiB", current_grid->launch->at);
#if defined(SIMT_ASAN)
  __asan_unpoison_memory_region(array.band_begin, size_t(array.band_end - array.band_begin));
#endif
  fill_band(array.band_begin, data);
  std::memset(data, 0xFF, bytes);
  fill_band(data + bytes, array.band_end);
#if defined(SIMT_ASAN)
  __asan_poison_memory_region(array.band_begin, size_t(data - array.band_begin));
  __asan_poison_memory_region(data + bytes, kBand);
#endif
  race::mark(array.band_begin, size_t(array.band_end - array.band_begin), race::Bytes::nobodys, true);
  race::mark(data, bytes, race::Bytes::undefined, true);
  block.shared_used = offset + bytes + kBand;
  block.shared_arrays.push_back(array);
  return data;
}

unsigned char* find_shared(const Block& block, const void* key) {
  for (const SharedArray& array : block.shared_arrays)
    if (array.key == key) return array.data;
  return nullptr;
}

}  // namespace

void* shared_static(const void* key, size_t bytes, size_t alignment) {
  Block& block = *current_thread->block;
  if (unsigned char* known = find_shared(block, key)) return known;
  block.static_bytes += bytes;
  const Place at = current_grid->launch->at;
  if (block.static_bytes > kMaxStaticSharedBytes) fail("launch", "static shared memory over 48 KiB", at);
  if (block.static_bytes + current_grid->launch->shared_bytes > kMaxSharedBytes)
    fail("launch", "shared memory over 227 KiB", at);
  return allocate_shared(block, key, bytes, alignment);
}

void* shared_dynamic(size_t alignment) {
  Block& block = *current_thread->block;
  unsigned char* data = find_shared(block, nullptr);
  if (data == nullptr) data = allocate_shared(block, nullptr, current_grid->launch->shared_bytes, alignment);
  return data;
}

void check_shared_memory(Block& block) {
#if !defined(SIMT_ASAN)
  for (const SharedArray& array : block.shared_arrays)
    if (!band_is_whole(array.band_begin, array.data) ||
        !band_is_whole(array.data + array.bytes, array.band_end))
      record_error("out of bounds", "block (" + std::to_string(block.index.x) + "," +
                                        std::to_string(block.index.y) + "," + std::to_string(block.index.z) +
                                        ") wrote outside of a shared array of " +
                                        std::to_string(array.bytes) + " bytes");
#else
  (void)block;
#endif
}

Block::~Block() {
  for (const auto& thread : threads) free_fiber(thread->fiber);
  if (shared_memory != nullptr) unmap_pages(shared_memory, kSharedArena);
}

}  // namespace simt
