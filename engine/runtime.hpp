// The only place where the engine touches a device: which one, its memory, its streams, events, copies.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/core/op.hpp"

struct CUevent_st;      // *cudaEvent_t
struct CUgraphExec_st;  // *cudaGraphExec_t

namespace vqlab {

// Where memory lies. On the CPU both are host memory; on a GPU `pinned` is page-locked host memory.
enum class MemoryKind { device, pinned };

// Frees a block of its kind.
struct BlockDeleter {
  Device device = Device::cpu;
  MemoryKind kind = MemoryKind::device;
  void operator()(std::byte* memory) const;
};
using Block = std::unique_ptr<std::byte, BlockDeleter>;

class Runtime {
 public:
  // `choice` is auto, cpu or cuda: auto falls back to the CPU and says why in note(); cuda never falls back.
  // `threads` of the CPU backend, 0 = all cores. Throws Error(device) for cuda without a usable device,
  // Error(usage) for another choice.
  Runtime(const std::string& choice, int threads);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Device device() const { return device_; }
  // One line for people: the device in use, and the reason if a GPU was not.
  const std::string& note() const { return note_; }
  // "cpu" or the name of the GPU.
  const std::string& device_name() const { return device_name_; }
  // Two queues. What is enqueued on one is done in order; between the two only an Event orders.
  Stream compute() const { return compute_; }
  Stream copy() const { return copy_; }

  // Zeroed, aligned to 256 bytes. Throws Error(resources) that names `what` and the bytes.
  Block allocate(int64_t bytes, MemoryKind kind, const std::string& what) const;
  // Bytes that allocate() could still give out: of the GPU, or of the host as available_bytes().
  int64_t available_device_bytes() const;
  // Copies on the stream. Pinned host bytes must stay as they are until it is done.
  void upload(void* device, const void* host, int64_t bytes, Stream stream) const;
  void download(void* host, const void* device, int64_t bytes, Stream stream) const;
  // Waits until everything enqueued on the stream is done.
  void synchronize(Stream stream) const;

 private:
  void open_device();

  Device device_ = Device::cpu;
  Stream compute_, copy_;
  std::string note_, device_name_ = "cpu";
};

// A point in a stream's work. Without a device, and before its first record(), everything that waits for it
// goes on at once.
class Event {
 public:
  enum class Timing { off, on };
  Event() = default;  // of no device
  explicit Event(const Runtime& runtime, Timing timing = Timing::off);
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  void record(Stream stream);      // after what the stream has been given so far
  void hold(Stream stream) const;  // the stream's next work waits
  void wait() const;               // the host waits
  // Milliseconds from `start` to this event; both with Timing::on, recorded and done.
  double milliseconds_since(const Event& start) const;

 private:
  CUevent_st* handle_ = nullptr;
};

// Work of a stream that is launched as one: a launch costs the host a few microseconds, whatever it holds.
class Graph {
 public:
  Graph() = default;  // empty
  // What `enqueue` gives the stream, which has a device; nothing of it runs. All that it reads and writes
  // must stay where it is, numbers are those of now, and the host must neither wait nor allocate. Throws
  // Error(failed).
  Graph(Stream stream, const std::function<void()>& enqueue);
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  bool empty() const { return handle_ == nullptr; }
  void launch(Stream stream) const;

 private:
  CUgraphExec_st* handle_ = nullptr;
};

// A named span of host time for profilers (NVTX, domain "vqlab"); nothing in a build without CUDA.
void push_profiler_range(const char* name);
void pop_profiler_range();

// One that the op_watch is told of, too.
class Range {
 public:
  explicit Range(const char* name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

// While it lives, a profiler that was started for cudaProfilerStart and -Stop records. What was enqueued
// before is done when that begins, and what is enqueued meanwhile before it ends.
class ProfilerCapture {
 public:
  explicit ProfilerCapture(const Runtime& runtime);
  ~ProfilerCapture();
  ProfilerCapture(const ProfilerCapture&) = delete;
  ProfilerCapture& operator=(const ProfilerCapture&) = delete;

 private:
  const Runtime& runtime_;
};

// A copy on the host of what lies on the device; waits for it.
template <class T>
std::vector<std::remove_const_t<T>> to_host(const View<T>& device, const Runtime& runtime) {
  std::vector<std::remove_const_t<T>> values(static_cast<size_t>(device.size()));
  runtime.download(values.data(), device.data, device.bytes(), runtime.compute());
  runtime.synchronize(runtime.compute());
  return values;
}

// "" if a CUDA device can be used, with the libraries that the ops need, else one line why not.
std::string cuda_problem();

// The CUDA devices of this machine, one line each: name, compute capability, memory, driver.
std::vector<std::string> cuda_devices();

// Bytes of host memory that this process could still take: what the system reports, or what its control group
// leaves.
int64_t available_bytes();

}  // namespace vqlab
