#include "engines.hpp"

#include <algorithm>
#include <cstring>

#include "grid.hpp"
#include "race.hpp"

namespace simt {
namespace {

bool aligned(const void* address, uintptr_t to) { return reinterpret_cast<uintptr_t>(address) % to == 0; }

// ---- copies of a thread ----

void do_copy(const AsyncCopy& copy) {
  race::touch(copy.shared, 16, race::Kind::write, copy.place);
  if (copy.global == nullptr) {
    std::memset(copy.shared, 0, 16);
    return;
  }
  race::touch(copy.global, 16, race::Kind::read, copy.place);
  std::memcpy(copy.shared, copy.global, 16);
}

}  // namespace

void start_copy(void* shared, const void* global, bool valid, Place at) {
  if (!aligned(shared, 16) || (valid && !aligned(global, 16)))
    fail("misaligned", "a copy of 16 bytes from or to an address that is no multiple of 16", at);
  const AsyncCopy copy{shared, valid ? global : nullptr, at};
  if (randomised() && current_grid->random.below(4) == 0) return do_copy(copy);  // may happen at once
  race::touch(shared, 16, race::Kind::write, at);
  race::undefine(shared, 16);
  std::memset(shared, 0xFF, 16);
  current_thread->copies.push_back(copy);
}

void commit_copies() {
  current_thread->copy_groups.push_back(std::move(current_thread->copies));
  current_thread->copies.clear();
}

void wait_for_copies(unsigned pending) {
  auto& groups = current_thread->copy_groups;
  for (; groups.size() > pending; groups.pop_front())
    for (const AsyncCopy& copy : groups.front()) do_copy(copy);
}

// ---- barriers in shared memory ----

namespace {

// What orders a phase of this parity: an address of its own inside the barrier.
const void* phase_of(const void* barrier, uint64_t phase) {
  return static_cast<const char*>(barrier) + phase % 2;
}

MBarrier& known_mbarrier(Block& block, void* barrier, Place at) {
  const auto found = block.mbarriers.find(barrier);
  if (found == block.mbarriers.end()) fail("mbarrier", "used before it is initialised", at);
  return found->second;
}

void end_phase_if_complete(MBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phases;
  barrier.pending = barrier.arrivals;
  for (Thread* thread : barrier.waiting) current_grid->ready.push(thread);
  barrier.waiting.clear();
}

}  // namespace

void init_mbarrier(void* barrier, uint32_t arrivals, Place at) {
  if (!aligned(barrier, 8)) fail("misaligned", "an mbarrier that is not aligned to 8 bytes", at);
  if (arrivals == 0) fail("mbarrier", "initialised for no arrivals", at);
  race::touch(barrier, 8, race::Kind::write, at);
  MBarrier& made = current_thread->block->mbarriers[barrier];
  if (made.arrivals != 0) fail("mbarrier", "initialised twice", at);
  made.arrivals = made.pending = arrivals;
}

void show_mbarriers() {
  for (auto& [address, barrier] : current_thread->block->mbarriers) barrier.shown = true;
}

void arrive(void* barrier, uint32_t expected_bytes, Place at) {
  maybe_yield();
  Block& block = *current_thread->block;
  MBarrier& known = known_mbarrier(block, barrier, at);
  race::touch(barrier, 8, race::Kind::atomic, at);
  race::release(block, phase_of(barrier, known.phases));
  if (known.pending == 0)
    fail("mbarrier", "more threads arrive than the " + std::to_string(known.arrivals) + " of a phase", at);
  --known.pending;
  known.bytes += expected_bytes;
  end_phase_if_complete(known);
}

void wait_for_phase(void* barrier, uint32_t parity, Place at) {
  maybe_yield();
  MBarrier& known = known_mbarrier(*current_thread->block, barrier, at);
  race::touch(barrier, 8, race::Kind::atomic, at);
  while (known.phases % 2 == parity) {  // again if the barrier has moved on before this thread could
    known.waiting.push_back(current_thread);
    wait_here("a wait on an mbarrier", at);
  }
  race::acquire(phase_of(barrier, parity));
}

// ---- bulk copies ----

namespace {

void end_box_copy(Block& block, void* barrier, int64_t bytes, Place at) {
  const auto found = block.mbarriers.find(barrier);
  if (found == block.mbarriers.end())
    return record_error("mbarrier",
                        "a bulk copy counts on one that is not initialised\n  at " + file_and_line(at));
  race::touch(barrier, 8, race::Kind::atomic, at);
  race::release(block, phase_of(barrier, found->second.phases));
  found->second.bytes -= bytes;
  end_phase_if_complete(found->second);
}

// Calls part(address, row, column) for each 16 bytes of the box, where they lie in the tile.
void for_each_part(const BoxCopy& copy, auto&& part) {
  for (int row = 0; row < copy.box_rows; ++row)
    for (int column = 0; column < copy.box_columns; column += 8) {
      const auto plain = reinterpret_cast<uintptr_t>(copy.tile + 2 * (row * copy.box_columns + column));
      part(reinterpret_cast<unsigned char*>(swizzled(plain)), copy.row + row, copy.column + column);
    }
}

void do_box_copy(const BoxCopy& copy, Place at) {
  for_each_part(copy, [&](unsigned char* to, int64_t row, int64_t column) {
    race::touch(to, 16, race::Kind::write, at);
    std::memset(to, 0, 16);
    const int64_t first = std::max<int64_t>(column, 0), last = std::min(column + 8, copy.columns);
    if (row < 0 || row >= copy.rows || first >= last) return;
    const unsigned char* from = copy.matrix + 2 * (row * copy.columns + first);
    race::touch(from, size_t(2 * (last - first)), race::Kind::read, at);
    std::memcpy(to + 2 * (first - column), from, size_t(2 * (last - first)));
  });
}

}  // namespace

void start_box_copy(const BoxCopy& copy, Place at) {
  if (!aligned(copy.tile, 1024))
    fail("misaligned", "a swizzled tile that does not begin at a multiple of 1024", at);
  Block& block = *current_thread->block;
  if (!known_mbarrier(block, copy.barrier, at).shown)
    fail("mbarrier", "a bulk copy counts on one without fence.mbarrier_init", at);
  const race::Snapshot issuer = race::snapshot();
  race::run_as_engine(issuer, block, race::kCopyEngine, [&] {
    for_each_part(copy, [&](unsigned char* to, int64_t, int64_t) {
      race::touch(to, 16, race::Kind::write, at);
      race::undefine(to, 16);
      std::memset(to, 0xFF, 16);
    });
  });
  current_grid->bulk_copies.emplace_back(&block, [=, &block] {
    race::run_as_engine(issuer, block, race::kCopyEngine, [&] {
      do_box_copy(copy, at);
      end_box_copy(block, copy.barrier, int64_t(2) * copy.box_rows * copy.box_columns, at);
    });
  });
  yield();
}

bool advance_bulk_copies() {
  auto& copies = current_grid->bulk_copies;
  if (copies.empty()) return false;
  const size_t chosen = options().policy == Policy::in_order  ? 0
                        : options().policy == Policy::reverse ? copies.size() - 1
                                                              : current_grid->random.below(copies.size());
  const std::function<void()> copy = std::move(copies[chosen].second);
  copies.erase(copies.begin() + std::ptrdiff_t(chosen));
  copy();
  return true;
}

void check_engines(Block& block) {
  const auto in_flight = [&](const char* what) {
    record_error("in flight", std::string("a block ended before it has waited for its ") + what);
  };
  for (const auto& [owner, copy] : current_grid->bulk_copies)
    if (owner == &block) in_flight("bulk copies");
  for (const Warpgroup& group : block.warpgroups)
    if (!group.in_flight.empty()) in_flight("products");
  for (unsigned i = 0; i < block.size; ++i) {
    const Thread& thread = *block.threads[i];
    const auto filled = [](const std::vector<AsyncCopy>& copies) { return !copies.empty(); };
    if (filled(thread.copies) || std::any_of(thread.copy_groups.begin(), thread.copy_groups.end(), filled))
      return in_flight("copies");
  }
}

}  // namespace simt
