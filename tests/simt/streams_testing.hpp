// What the tests of streams share.
#pragma once

#include <cstring>

#include "simt_testing.hpp"

namespace simt::testing {

__global__ inline void add_kernel(float* output, const float* input, int size, float value) {
  for (int i = int(threadIdx.x); i < size; i += int(blockDim.x)) output[i] = input[i] + value;
}

inline void add(Stream stream, float* output, const float* input, int size, float value) {
  launch("add", add_kernel, {1, 32}, stream, output, input, size, value);
}

inline void for_each_order(unsigned seeds, const std::function<void()>& body) {
  for (const Order order : kOrders)
    for (unsigned seed = 1; seed <= (order == Order::random ? seeds : 1); ++seed) {
      reset({.seed = seed, .order = order});
      INFO(name_of(order) << ", seed " << seed);
      body();
    }
  reset({});
}

class TestEvent {
 public:
  TestEvent() { CUDA_CHECK(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming)); }
  ~TestEvent() { (void)cudaEventDestroy(handle); }
  TestEvent(const TestEvent&) = delete;
  TestEvent& operator=(const TestEvent&) = delete;
  void record(const TestStream& stream) { CUDA_CHECK(cudaEventRecord(handle, stream.handle)); }
  void hold(const TestStream& stream) { CUDA_CHECK(cudaStreamWaitEvent(stream.handle, handle, 0)); }
  void wait() { CUDA_CHECK(cudaEventSynchronize(handle)); }

  cudaEvent_t handle = nullptr;
};

// Page-locked memory of the host.
class Pinned {
 public:
  Pinned(int size, const char* name) {
    CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&data), size_t(size) * sizeof(float)));
    vqlab::name_memory(data, int64_t(size) * int64_t(sizeof(float)), name);
  }
  ~Pinned() { (void)cudaFreeHost(data); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

  float* data = nullptr;
};

}  // namespace simt::testing
