// The state of the emulated device: memory, streams, clocks. Shared by the files that implement it.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "race.hpp"
#include "streams.hpp"

namespace simt {

// How much of each slot's work is known to be done; slot 0 is the host. Missing entries are 0.
class Clock {
 public:
  uint32_t operator[](size_t slot) const { return slot < known_.size() ? known_[slot] : 0; }
  void join(const Clock& other) {
    if (known_.size() < other.known_.size()) known_.resize(other.known_.size());
    for (size_t i = 0; i < other.known_.size(); ++i) known_[i] = std::max(known_[i], other.known_[i]);
  }
  uint32_t tick(size_t slot) {
    if (known_.size() <= slot) known_.resize(slot + 1);
    return ++known_[slot];
  }

 private:
  std::vector<uint32_t> known_;
};

struct Operation {
  size_t slot;
  uint32_t sequence;  // by slot; it is done for those whose clock has reached it
  std::string name;
  Place at;
  std::shared_ptr<std::string> stream;
  Clock known;                  // what it comes after
  mutable uint32_t number = 0;  // of the race checker
};

struct Touch {
  std::shared_ptr<const Operation> operation;
  bool write;
};

// Bytes that the order of accesses is checked for as one, and the accesses that a new one can conflict with.
struct Part {
  size_t bytes = 0;
  std::string name;
  std::vector<Touch> touches;
};

// [page of no access][band][data, exact size][band to the end of the page][page of no access]
struct Allocation {
  unsigned char *data = nullptr, *begin = nullptr, *end = nullptr;  // [begin, end) is what can be open
  size_t bytes = 0;
  void* mapping = nullptr;
  size_t mapping_bytes = 0;
  bool pinned = false, open = true, used = false;
  std::map<unsigned char*, Part> parts;  // the named ones
  Part rest;                             // all else
  // Of pinned memory: the accesses of the device that the host has not waited for.
  struct Hold {
    unsigned char *begin, *end;
    Touch touch;
  };
  std::vector<Hold> holds;
};

// One recording of an event: those who wait for it are not concerned by the next.
struct Recording {
  CUstream_st* stream = nullptr;
  Clock clock;
  bool done = false;
  bool captured = false;  // an edge of a graph and nothing else
  std::chrono::steady_clock::time_point time;
};

// What a captured graph repeats.
struct GraphNode {
  std::string name;
  Place at;
  std::vector<Access> accesses;
  std::function<void()> function;
  Work work;
  std::vector<std::string> arguments;  // of a kernel, as text: what is fixed by the capture
};

struct QueueItem {
  std::shared_ptr<const Operation> operation;  // or one of the two
  std::shared_ptr<Recording> record, wait;
  std::vector<Access> accesses;
  std::function<void()> function;
  bool is_kernel = false;  // its accesses are its instructions, else those declared
};

// A capture that has begun, and the streams that work for it. A graph orders its nodes as captured, whatever
// the streams do elsewhere: so it has clocks and a history of its own.
struct Capture {
  CUstream_st* origin = nullptr;
  std::vector<CUstream_st*> forks;  // with work that the origin has not waited for yet
  std::vector<GraphNode> nodes;
  std::map<CUstream_st*, Clock> clocks;
  std::map<Part*, std::vector<Touch>> touches;
};

}  // namespace simt

struct CUgraph_st {
  std::vector<simt::GraphNode> nodes;
};

struct CUgraphExec_st {
  std::vector<simt::GraphNode> nodes;
};

struct CUstream_st {
  size_t slot = 0;
  std::shared_ptr<std::string> name;
  simt::Clock clock;
  bool capturing = false;
  std::deque<simt::QueueItem> queue;
};

struct CUevent_st {
  bool timed = true;
  std::shared_ptr<simt::Recording> last;  // null: never recorded
};

namespace simt {

struct Device {
  std::recursive_mutex mutex;
  std::map<unsigned char*, Allocation> allocations;  // by data
  size_t allocated_bytes = 0;
  std::vector<CUstream_st*> streams;
  size_t slots = 1;
  Clock host;
  Random random;
  const Operation* running = nullptr;
  std::unique_ptr<Capture> capture;
  std::string pending;  // an error found where nothing may be thrown
  bool failed = false;  // an error was thrown: nothing runs any more until reset()
};
Device& device();

// ---- memory.cpp ----
Allocation* find_allocation(const void* address);  // also for the address just after its end
std::vector<Part*> parts_of(Allocation& allocation, const Access& access);
unsigned char* end_of_part(const Allocation& allocation, const unsigned char* address);
std::string name_at(Allocation& allocation, const void* address);
Allocation* allocate_memory(size_t bytes, bool pinned);  // null: no memory
void free_memory(void* data);
void open_memory(const std::vector<Access>& accesses);
// Closes to host code what operations opened, and pinned memory as far as its holds say.
void close_memory();
void hold_pinned(const Access& access, const Touch& touch);
void release_holds();  // those that the host has waited for
void check_bands();
void install_fault_handler();
std::string describe(const Operation& operation);
// Throws Error if `now` is not ordered after one of the touches of a part; else it becomes one of them.
void check_order(const std::string& part, std::vector<Touch>& touches, const Touch& now, const Clock& known);
std::string unordered(const std::string& part, const std::string& now, bool write, const Touch& then);

// ---- capture.cpp ----
void end_capture();  // whatever has been captured is lost
// Throws Error if a capture is going on, which what the host does would break.
void refuse_in_capture(const std::string& what);
void forget_captures();
void capture_node(CUstream_st& stream, GraphNode node);
std::shared_ptr<Recording> capture_record(CUstream_st& stream);
// Whether the wait belongs to a capture.
bool capture_wait(CUstream_st& stream, Recording& recording);

// ---- streams.cpp ----
// Runs one call. What it finds is thrown, except while another exception is on its way or where the caller
// may be a destructor: then the call fails, and the next one throws.
cudaError_t call(const std::function<cudaError_t()>& body, bool may_throw = true);
CUstream_st& checked(CUstream_st* stream);
void push(CUstream_st& stream, QueueItem item);
void advance(CUstream_st& stream);  // runs the least that lets the stream go on
void run_some();                    // after each call: as the order says
void wait_for_stream(CUstream_st& stream);
void wait_for_recording(Recording& recording);
void drain();  // runs all that is queued, without anybody having waited for it
void raise_pending();

}  // namespace simt
