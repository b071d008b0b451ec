// What the emulator's own tests share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/core/annotate.hpp"
#include "kernels/core/cuda.hpp"
#include "testing.hpp"

namespace simt::testing {

using vqlab::Device;
using vqlab::launch;
using vqlab::Stream;

inline constexpr Policy kPolicies[] = {Policy::in_order, Policy::reverse, Policy::random, Policy::priority};
inline constexpr Order kOrders[] = {Order::eager, Order::lazy, Order::random};

// Runs body() under every policy, the seeded ones with `seeds` seeds; orders of streams take turns.
inline void for_each_policy(unsigned seeds, const std::function<void()>& body) {
  for (const Policy policy : kPolicies)
    for (unsigned seed = 1; seed <= (policy < Policy::random ? 1 : seeds); ++seed) {
      reset({.policy = policy, .seed = seed, .order = kOrders[seed % 3]});
      INFO(name_of(policy) << ", seed " << seed << ", " << name_of(options().order));
      body();
    }
  reset({});
}

// A stream that dies with its scope.
class TestStream {
 public:
  explicit TestStream(const char* name = "compute") {
    CUDA_CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking));
    vqlab::name_stream(*this, name);
  }
  ~TestStream() { (void)cudaStreamDestroy(handle); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator Stream() const { return {Device::cuda, handle}; }
  void synchronize() const { CUDA_CHECK(cudaStreamSynchronize(handle)); }

  cudaStream_t handle = nullptr;
};

// An array of the device.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size, const char* name = "array") : size_(size) {
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)));
    vqlab::name_memory(data_, int64_t(size * sizeof(T)), name);
  }
  Buffer(const std::vector<T>& values, const TestStream& stream, const char* name = "array")
      : Buffer(values.size(), name) {
    CUDA_CHECK(cudaMemcpyAsync(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice,
                               stream.handle));
    stream.synchronize();
  }
  ~Buffer() { (void)cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }
  std::vector<T> download(const TestStream& stream) const {
    std::vector<T> values(size_);
    CUDA_CHECK(
        cudaMemcpyAsync(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost, stream.handle));
    stream.synchronize();
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// The message of the Error that body() throws, "" if it throws none; pending work is forgotten.
inline std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    reset(options());
    return error.what();
  }
  return "";
}

// Runs one kernel to its end.
template <class... P, class... A>
void run_kernel(void (*kernel)(P...), dim3 grid, dim3 block, const TestStream& stream, A... arguments) {
  launch("test", kernel, {grid, block}, stream, arguments...);
  stream.synchronize();
}

}  // namespace simt::testing
