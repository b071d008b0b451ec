// What the scheduler and the synchronisation share: threads, warps, blocks and the grid that runs now.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fibers.hpp"
#include "simt.hpp"

namespace simt {

constexpr unsigned kWarp = 32, kWarpgroup = 128;

struct Block;

// Of one thread: 16 bytes on their way to shared memory, or zeros.
struct AsyncCopy {
  void* shared;
  const void* global;
  Place place;
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index{};
  unsigned linear = 0, lane = 0, warp = 0;
  uint64_t priority = 0;
  bool done = false;
  void* race = nullptr;  // what the race checker knows of it
  std::vector<AsyncCopy> copies;
  std::deque<std::vector<AsyncCopy>> copy_groups;
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

// A barrier in shared memory that counts arrivals and bytes (engines.cpp).
struct MBarrier {
  uint32_t arrivals = 0, pending = 0;
  int64_t bytes = 0;    // expected less copied, in this phase
  uint64_t phases = 0;  // that have ended
  bool shown = false;   // to the copy engine
  std::vector<Thread*> waiting;
};

// Threads of a warpgroup that wait for the rest, and the products that they have started.
struct Warpgroup {
  const char* name = nullptr;
  void (*function)(void** arguments) = nullptr;
  Place place;
  unsigned present = 0;
  void* arguments[kWarpgroup];

  using Accumulators = std::vector<float>;  // (thread, element)
  struct InFlight {
    std::vector<float*> homes;  // of each thread
    Accumulators values;
    unsigned products = 0;
  };
  bool fenced = false;
  std::map<float*, InFlight> in_flight;  // by the home of the first thread
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> groups;
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
  std::map<const void*, MBarrier> mbarriers;
  std::vector<Warpgroup> warpgroups;

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
  std::vector<std::pair<Block*, std::function<void()>>> bulk_copies;  // on their way, in any order
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
// Lets one bulk copy arrive; false if none is on its way.
bool advance_bulk_copies();
void check_engines(Block& block);  // when its threads have ended
void check_shared_memory(Block& block);
// Ends the grid with an error, from a thread or from the host's loop.
void record_error(const std::string& kind, const std::string& text);
// Like fail(), but nothing on the stack is destroyed: it may be anything.
[[noreturn]] void fail_here(const std::string& kind, const std::string& text);
std::string describe(const Thread& thread);
void set_options(const Options& options);
bool randomised();  // whether the policy draws

}  // namespace simt
