#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>
#include <set>

#include "cuda_runtime.h"
#include "grid.hpp"
#include "race.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

Grid* current_grid = nullptr;
Thread* current_thread = nullptr;

namespace {

uint64_t launches = 0;
std::map<const void*, size_t> allowed_shared_bytes;

template <class Enum>
Enum from_environment(const char* variable, std::initializer_list<Enum> values, Enum otherwise) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return otherwise;
  for (const Enum value : values)
    if (std::strcmp(text, name_of(value)) == 0) return value;
  throw Error(std::string("simt: ") + variable + ": unknown value " + text);
}

Options& mutable_options() {
  static Options current = [] {
    Options o;
    o.policy = from_environment(
        "SIMT_POLICY", {Policy::in_order, Policy::reverse, Policy::random, Policy::priority}, o.policy);
    o.order = from_environment("SIMT_ORDER", {Order::eager, Order::lazy, Order::random}, o.order);
    if (const char* seed = std::getenv("SIMT_SEED")) o.seed = std::strtoull(seed, nullptr, 0);
    return o;
  }();
  return current;
}

std::string describe(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

}  // namespace

const Options& options() { return mutable_options(); }

bool randomised() { return options().policy == Policy::random || options().policy == Policy::priority; }

void set_options(const Options& wanted) {
  mutable_options() = wanted;
  launches = 0;
}

Stats& stats() {
  static Stats counters;
  return counters;
}

const char* name_of(Policy policy) {
  static const char* const names[] = {"in-order", "reverse", "random", "priority"};
  return names[int(policy)];
}

const char* name_of(Order order) {
  static const char* const names[] = {"eager", "lazy", "random"};
  return names[int(order)];
}

std::string file_and_line(Place at) {
  const char* slash = std::strrchr(at.file_name(), '/');
  return std::string(slash != nullptr ? slash + 1 : at.file_name()) + ":" + std::to_string(at.line());
}

std::string describe(const Thread& thread) {
  return "block " + describe(thread.block->index) + " thread " + describe(thread.index);
}

// ---- the ready list ----

namespace {
bool less_urgent(const Thread* a, const Thread* b) { return a->priority < b->priority; }
}  // namespace

void ReadyList::reset(size_t capacity, Policy policy) {
  policy_ = policy;
  head_ = count_ = 0;
  heap_.clear();
  size_t size = 1;
  while (size < capacity) size *= 2;
  ring_.assign(size, nullptr);
}

void ReadyList::push(Thread* thread) {
  if (policy_ == Policy::priority) {
    heap_.push_back(thread);
    std::push_heap(heap_.begin(), heap_.end(), less_urgent);
  } else {
    ring_[(head_ + count_++) & (ring_.size() - 1)] = thread;
  }
}

Thread* ReadyList::pop(Random& random) {
  if (policy_ == Policy::priority) {
    if (heap_.empty()) return nullptr;
    std::pop_heap(heap_.begin(), heap_.end(), less_urgent);
    Thread* thread = heap_.back();
    heap_.pop_back();
    return thread;
  }
  if (count_ == 0) return nullptr;
  const size_t mask = ring_.size() - 1;
  if (policy_ == Policy::random) std::swap(ring_[head_], ring_[(head_ + random.below(count_)) & mask]);
  Thread* thread = ring_[head_];
  head_ = (head_ + 1) & mask;
  --count_;
  return thread;
}

// Warps draw, and their lanes stay close to them. Only while none of the block's threads is on the ready
// list.
void redraw_priorities(Block& block) {
  uint64_t of_warp = 0;
  for (unsigned i = 0; i < block.size; ++i) {
    if (i % kWarp == 0) of_warp = current_grid->random() << 8;
    block.threads[i]->priority = of_warp | (current_grid->random() & 0xff);
  }
}

// ---- switching ----

namespace {

void resume(Thread& thread, Fiber& from, bool last = false) {
  current_thread = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  ++stats().switches;
  switch_fiber(from, thread.fiber, last);
}

void return_to_host(Thread& thread, bool last) {
  current_thread = nullptr;
  switch_fiber(thread.fiber, current_grid->host, last);
}

// The next thread, after some of the copies that work beside the threads; null if there is none.
Thread* next_thread() {
  Grid& grid = *current_grid;
  if (!grid.bulk_copies.empty() && randomised() && grid.random.below(4) == 0) advance_bulk_copies();
  Thread* next = nullptr;
  while (grid.error.empty() && (next = grid.ready.pop(grid.random)) == nullptr && advance_bulk_copies())
    continue;
  return next;
}

// Straight to the next thread if there is one: half the switches of going through the host.
void suspend(Thread& thread) {
  Thread* next = next_thread();
  if (next == &thread) return;
  if (next != nullptr)
    resume(*next, thread.fiber);
  else
    return_to_host(thread, false);
}

struct Abandon {};  // thrown by fail(), so that what lies on the thread's stack is destroyed

void thread_main() {
  fiber_started();
  Thread& self = *current_thread;
  try {
    (*current_grid->body)();
    self.done = true;
    end_of_thread(self);
  } catch (const Abandon&) {
  } catch (const std::exception& e) {
    record_error("exception in a kernel", std::string(e.what()) + "\n  " + describe(self));
  } catch (...) {
    record_error("exception in a kernel", describe(self));
  }
  self.fiber.unwound = true;
  Thread* next = nullptr;
  if (current_grid->error.empty() && self.block->live > 0) next = next_thread();
  if (next != nullptr)
    resume(*next, self.fiber, true);
  else
    return_to_host(self, true);
  std::abort();  // nobody resumes a thread that is done
}

}  // namespace

void yield() {
  if (current_thread == nullptr) return;
  current_grid->ready.push(current_thread);
  suspend(*current_thread);
}

void maybe_yield() {
  if (current_thread != nullptr && randomised() && current_grid->random.below(8) == 0) yield();
}

void wait_here(const char* reason, Place at) {
  current_thread->waits_in = reason;
  current_thread->place = at;
  suspend(*current_thread);
}

void record_error(const std::string& kind, const std::string& text) {
  const Grid& grid = *current_grid;
  if (!grid.error.empty()) return;
  current_grid->error = "simt: " + kind + ": " + text + "\n  kernel '" + grid.launch->name +
                        "' launched at " + file_and_line(grid.launch->at) + "; policy " +
                        name_of(options().policy) + ", seed " + std::to_string(options().seed) + ", launch " +
                        std::to_string(grid.number);
}

void fail(const std::string& kind, const std::string& text, Place at) {
  if (current_thread == nullptr) throw Error("simt: " + kind + ": " + text + "\n  at " + file_and_line(at));
  record_error(kind, text + "\n  at " + file_and_line(at) + ", " + describe(*current_thread));
  throw Abandon();
}

void fail_here(const std::string& kind, const std::string& text) {
  record_error(kind, text + "\n  " + describe(*current_thread));
  return_to_host(*current_thread, true);
  std::abort();  // nobody resumes it
}

// ---- a launch ----

namespace {

std::unique_ptr<Block> start_block(Grid& grid, unsigned linear) {
  std::unique_ptr<Block> block;
  if (grid.spare.empty()) {
    block = std::make_unique<Block>();
  } else {
    block = std::move(grid.spare.back());
    grid.spare.pop_back();
  }
  const dim3 shape = grid.launch->block, blocks = grid.launch->grid;
  block->index = {linear % blocks.x, linear / blocks.x % blocks.y, linear / blocks.x / blocks.y};
  block->size = block->live = shape.x * shape.y * shape.z;
  block->warps.resize((block->size + kWarp - 1) / kWarp);
  for (Warp& warp : block->warps) {
    warp.existing = warp.exited = 0;
    warp.open.clear();
  }
  block->waiting.clear();
  block->gathering = {0, 1, 0};
  block->shared_used = block->static_bytes = 0;
  block->shared_arrays.clear();
  block->mbarriers.clear();
  block->warpgroups.assign(block->size / kWarpgroup, {});
  for (unsigned i = 0; i < block->size; ++i) {
    if (block->threads.size() == i) block->threads.push_back(std::make_unique<Thread>());
    Thread& thread = *block->threads[i];
    thread.block = block.get();
    thread.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    thread.linear = i;
    thread.lane = i % kWarp;
    thread.warp = i / kWarp;
    thread.done = false;
    thread.copies.clear();
    thread.copy_groups.clear();
    block->warps[thread.warp].existing |= 1u << thread.lane;
    prepare_fiber(thread.fiber, thread_main, i);
  }
  race::start_block(*block);
  if (options().policy == Policy::priority) redraw_priorities(*block);
  for (unsigned i = 0; i < block->size; ++i)
    grid.ready.push(block->threads[options().policy == Policy::reverse ? block->size - 1 - i : i].get());
  ++stats().blocks;
  return block;
}

// "0-31 40"
std::string ranges(const std::vector<unsigned>& sorted) {
  std::string text;
  for (size_t i = 0, j; i < sorted.size(); i = j + 1) {
    for (j = i; j + 1 < sorted.size() && sorted[j + 1] == sorted[j] + 1;) ++j;
    text += " " + std::to_string(sorted[i]) + (j > i ? "-" + std::to_string(sorted[j]) : "");
  }
  return text;
}

std::string who_waits(const Grid& grid) {
  std::map<std::string, std::vector<unsigned>> groups;
  for (const auto& block : grid.resident)
    for (unsigned i = 0; i < block->size; ++i) {
      const Thread& thread = *block->threads[i];
      const std::string doing =
          thread.done ? "exited" : std::string(thread.waits_in) + " at " + file_and_line(thread.place);
      groups[doing + ", block " + describe(block->index)].push_back(thread.linear);
    }
  std::string text = "no thread can run; waiting:";
  for (const auto& [doing, threads] : groups)
    text += "\n    " + std::to_string(threads.size()) + " threads: " + doing + ":" + ranges(threads);
  return text;
}

std::vector<unsigned> block_order(Grid& grid) {
  const dim3 blocks = grid.launch->grid;
  std::vector<unsigned> order(size_t(blocks.x) * blocks.y * blocks.z);
  std::iota(order.begin(), order.end(), 0u);
  if (options().policy == Policy::reverse) std::reverse(order.begin(), order.end());
  if (randomised())
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[grid.random.below(i)]);
  return order;
}

void run_blocks(Grid& grid) {
  const std::vector<unsigned> order = block_order(grid);
  size_t next_block = 0;
  while (grid.error.empty()) {
    while (grid.resident.size() < std::max(1u, options().resident_blocks) && next_block < order.size())
      grid.resident.push_back(start_block(grid, order[next_block++]));
    if (grid.resident.empty()) return;
    Thread* next = next_thread();
    if (!grid.error.empty()) return;
    if (next == nullptr) return record_error("deadlock", who_waits(grid));
    resume(*next, grid.host);
    if (!grid.error.empty()) return;
    for (size_t i = grid.resident.size(); i-- > 0;) {
      if (grid.resident[i]->live != 0) continue;
      check_shared_memory(*grid.resident[i]);
      check_engines(*grid.resident[i]);
      race::end_block(*grid.resident[i]);
      grid.spare.push_back(std::move(grid.resident[i]));
      grid.resident.erase(grid.resident.begin() + std::ptrdiff_t(i));
    }
  }
}

}  // namespace

void allow_shared_bytes(const void* kernel, size_t bytes) { allowed_shared_bytes[kernel] = bytes; }

void check_limits(const Launch& launch) {
  const auto refuse = [&](const std::string& why) {
    throw Error("simt: launch: kernel '" + std::string(launch.name) + "' at " + file_and_line(launch.at) +
                ": " + why);
  };
  const dim3 b = launch.block, g = launch.grid;
  const size_t threads = size_t(b.x) * b.y * b.z;
  if (threads == 0 || threads > 1024 || b.x > 1024 || b.y > 1024 || b.z > 64)
    refuse("a block of " + describe(uint3{b.x, b.y, b.z}) + " threads");
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
    refuse("a grid of " + describe(uint3{g.x, g.y, g.z}) + " blocks");
  if (launch.shared_bytes > kMaxSharedBytes) refuse("dynamic shared memory over 227 KiB");
  if (launch.shared_bytes > kMaxStaticSharedBytes) {
    const auto allowed = allowed_shared_bytes.find(launch.kernel);
    if (allowed == allowed_shared_bytes.end() || allowed->second < launch.shared_bytes)
      refuse("over 48 KiB of dynamic shared memory without cudaFuncSetAttribute");
  }
}

namespace {

// With SIMT_LAUNCH_LOG=FOLDER the names of the kernels that this process has launched are left there at its
// end.
struct LaunchLog {
  const char* const folder = std::getenv("SIMT_LAUNCH_LOG");
  std::set<std::string> names;
  ~LaunchLog() {
    if (folder == nullptr) return;
    std::ofstream file(std::string(folder) + "/" + std::to_string(getpid()));
    for (const std::string& name : names) file << name << '\n';
  }
} launch_log;

}  // namespace

void run_grid(const Launch& launch, const std::function<void()>& body) {
  if (current_grid != nullptr) throw Error("simt: a launch from within a kernel");
  check_limits(launch);
  launch_log.names.insert(launch.name);
  static std::vector<std::unique_ptr<Block>> blocks;  // with their stacks, for the next launch
  Grid grid;
  grid.launch = &launch;
  grid.body = &body;
  grid.number = ++launches;
  grid.random = Random(options().seed * 1000003 + grid.number);
  grid.spare = std::move(blocks);
  grid.ready.reset(
      size_t(launch.block.x) * launch.block.y * launch.block.z * std::max(1u, options().resident_blocks),
      options().policy);
  adopt_host_stack(grid.host);
  gridDim = launch.grid;
  blockDim = launch.block;
  current_grid = &grid;
  race::start_launch();
  run_blocks(grid);
  for (auto& block : grid.resident) {  // those that an error stopped
    race::end_block(*block);
    grid.spare.push_back(std::move(block));
  }
  blocks = std::move(grid.spare);
  current_grid = nullptr;
  current_thread = nullptr;
  if (!grid.error.empty()) throw Error(grid.error);
}

}  // namespace simt
