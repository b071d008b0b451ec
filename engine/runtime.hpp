// The only place where the engine touches a device: which one, its memory, its streams, copies.
#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/core/op.hpp"

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

  Device device() const { return device_; }
  // One line for people: the device in use, and the reason if a GPU was not.
  const std::string& note() const { return note_; }
  // "cpu" or the name of the GPU.
  const std::string& device_name() const { return device_name_; }
  Stream compute() const { return {device_, nullptr}; }

  // Zeroed, aligned to 256 bytes. Throws Error(resources) that names `what` and the bytes.
  Block allocate(int64_t bytes, MemoryKind kind, const std::string& what) const;
  // Copies on the stream. The host bytes must stay as they are until synchronize(), or be done for otherwise.
  void upload(void* device, const void* host, int64_t bytes, Stream stream) const;
  void download(void* host, const void* device, int64_t bytes, Stream stream) const;
  // Waits until everything enqueued on the stream is done.
  void synchronize(Stream stream) const;

 private:
  Device device_ = Device::cpu;
  std::string note_, device_name_ = "cpu";
};

// A copy on the host of what lies on the device; waits for it.
template <class T>
std::vector<std::remove_const_t<T>> to_host(const View<T>& device, const Runtime& runtime) {
  std::vector<std::remove_const_t<T>> values(static_cast<size_t>(device.size()));
  runtime.download(values.data(), device.data, device.bytes(), runtime.compute());
  runtime.synchronize(runtime.compute());
  return values;
}

// "" if a CUDA device can be used, else one line why not.
std::string cuda_problem();

// Bytes of host memory that this process could still take: what the system reports, or what its control group
// leaves.
int64_t available_bytes();

}  // namespace vqlab
