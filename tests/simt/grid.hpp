// What the scheduler and the synchronisation share: threads, warps, blocks and the grid that runs now.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fibers.hpp"
#include "simt.hpp"

namespace simt {

constexpr unsigned kWarp = 32;

struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index{};
  unsigned linear = 0, lane = 0, warp = 0;
  uint64_t priority = 0;
  bool done = false;
  void* race = nullptr;       // what the race checker knows of it
  const char* waits_in = "";  // with the place, for the report of a deadlock
  Place place;
};

// Lanes that wait for the rest of their mask.
struct OpenMeeting {
  const char* name;
  Meeting function;
  uint32_t mask, present;
  Place place;
  void* arguments[kWarp];
};

struct Warp {
  uint32_t existing = 0, exited = 0;
  std::vector<OpenMeeting> open;  // several: disjoint masks, or lanes that ran ahead
};

struct SharedArray {
  const void* key;  // null: the dynamic shared memory
  unsigned char* data;
  size_t bytes;
  unsigned char *band_begin, *band_end;
};

struct Block {
  uint3 index{};
  unsigned size = 0, live = 0;
  std::vector<std::unique_ptr<Thread>> threads;  // those after `size` are kept for larger blocks
  std::vector<Warp> warps;
  // The barrier: who waits, where the first of them came from, what they have said, what the last time gave.
  std::vector<Thread*> waiting;
  Place barrier_place;
  BarrierResult gathering{0, 1, 0}, gathered{0, 1, 0};
  unsigned char* shared_memory = nullptr;
  size_t shared_used = 0, static_bytes = 0;
  std::vector<SharedArray> shared_arrays;

  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();
};

// Threads that can run. Each stands in it at most once.
class ReadyList {
 public:
  void reset(size_t capacity, Policy policy);
  void push(Thread* thread);
  Thread* pop(Random& random);  // null if there is none

 private:
  Policy policy_ = Policy::in_order;
  std::vector<Thread*> ring_, heap_;
  size_t head_ = 0, count_ = 0;
};

struct Grid {
  const Launch* launch = nullptr;
  const std::function<void()>* body = nullptr;
  Random random;
  uint64_t number = 0;  // of this launch since reset()
  Fiber host;
  ReadyList ready;
  std::vector<std::unique_ptr<Block>> resident, spare;
  std::string error;
};

// Pages for the memory of the device, without access at first; null if there are none.
void* map_pages(size_t bytes);
void unmap_pages(void* memory, size_t bytes);

// Null outside run_grid() and on the host's stack, respectively.
extern Grid* current_grid;
extern Thread* current_thread;

// Stops the current thread, which others must put on the ready list again.
void wait_here(const char* reason, Place at);
void end_of_thread(Thread& thread);  // tells those who wait for it
void redraw_priorities(Block& block);
void check_shared_memory(Block& block);
// Ends the grid with an error, from a thread or from the host's loop.
void record_error(const std::string& kind, const std::string& text);
// Like fail(), but nothing on the stack is destroyed: it may be anything.
[[noreturn]] void fail_here(const std::string& kind, const std::string& text);
std::string describe(const Thread& thread);
void set_options(const Options& options);

}  // namespace simt
