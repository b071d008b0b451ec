// The race checker's own tests, with small kernels: what it must report, and what it must not.
#include "simt_testing.hpp"

namespace simt::testing {
namespace {

using Catch::Matchers::Contains;

// The message of the error that a kernel ends with, the same under every policy but for the threads named.
template <class... P, class... A>
void check_reported(const std::vector<std::string>& texts, void (*kernel)(P...), dim3 grid, dim3 block,
                    const A&... arguments) {
  for_each_policy(2, [&] {
    const std::string message = error_of([&] {
      const TestStream stream;
      run_kernel(kernel, grid, block, stream, arguments...);
    });
    for (const std::string& text : texts) CHECK_THAT(message, Contains(text));
  });
}

template <class... P, class... A>
void check_silent(void (*kernel)(P...), dim3 grid, dim3 block, const A&... arguments) {
  for_each_policy(3, [&] {
    CHECK(error_of([&] {
            const TestStream stream;
            run_kernel(kernel, grid, block, stream, arguments...);
          }) == "");
  });
}

// ---- a warp ----

template <bool kSync>
__global__ void swap_kernel(int* output) {
  VQ_SHARED(int, slots, [32]);
  slots[threadIdx.x] = int(threadIdx.x);
  if (kSync) __syncwarp();
  output[threadIdx.x] = slots[31 - threadIdx.x];
}

TEST_CASE("race: a swap through shared memory needs __syncwarp", "[planted]") {
  const Buffer<int> output(32);
  check_silent(swap_kernel<true>, 1, 32, output.data());
  check_reported({"of 4 bytes of shared memory at test_race.cpp:"}, swap_kernel<false>, 1, 32, output.data());
}

// Lanes know of each other after they meet, and of no one else.
__global__ void two_warps_kernel(int* output) {
  VQ_SHARED(int, slots, [64]);
  slots[threadIdx.x] = int(threadIdx.x);
  __syncwarp();
  output[threadIdx.x] = slots[(threadIdx.x + 32) % 64];
}

__global__ void shuffle_kernel(int* output) {
  VQ_SHARED(int, slots, [32]);
  slots[threadIdx.x] = int(threadIdx.x);
  const int other = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1);
  output[threadIdx.x] = slots[other];
}

TEST_CASE("race: __syncwarp orders one warp, and a shuffle orders nothing", "[planted]") {
  const Buffer<int> output(64);
  check_reported({"of 4 bytes of shared memory at test_race.cpp:"}, two_warps_kernel, 1, 64, output.data());
  check_reported({"of 4 bytes of shared memory at test_race.cpp:"}, shuffle_kernel, 1, 32, output.data());
}

// Two warps read, one of them some meetings later than the other by its clock; a third warp writes.
template <bool kSync>
__global__ void readers_at_two_times_kernel(int* output) {
  VQ_SHARED(int, slot, [1]);
  if (threadIdx.x == 64) slot[0] = 1;
  __syncthreads();
  if (threadIdx.x < 32) __syncwarp();
  if (threadIdx.x < 64) output[threadIdx.x] = slot[0];
  if (kSync) __syncthreads();
  if (threadIdx.x == 64) slot[0] = 2;
}

TEST_CASE("race: a write must come after every reader, whenever each has read", "[planted]") {
  const Buffer<int> output(64);
  check_silent(readers_at_two_times_kernel<true>, 1, 96, output.data());
  check_reported({"race: ", "of 4 bytes of shared memory at test_race.cpp:", "thread 64 of block (0,0,0)"},
                 readers_at_two_times_kernel<false>, 1, 96, output.data());
}

// ---- blocks ----

// The last block adds what all have stored.
template <bool kFence>
__global__ void last_block_kernel(int* sum, int* parts, unsigned* done) {
  VQ_SHARED(int, last, [1]);
  parts[blockIdx.x * 32 + threadIdx.x] = int(threadIdx.x);
  if (kFence) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last[0] = atomicAdd(done, 1u) + 1 == gridDim.x;
  __syncthreads();
  if (last[0] == 0 || threadIdx.x != 0) return;
  int total = 0;
  for (unsigned i = 0; i < gridDim.x * 32; ++i) total += parts[i];
  sum[0] = total;
}

template <bool kFence>
std::string last_block() {
  return error_of([&] {
    const TestStream stream;
    const Buffer<int> sum(1, "sum"), parts(96, "parts");
    const Buffer<unsigned> done(std::vector<unsigned>{0}, stream, "done");
    run_kernel(last_block_kernel<kFence>, 3, 32, stream, sum.data(), parts.data(), done.data());
    CHECK(sum.download(stream) == std::vector<int>{3 * 31 * 16});
  });
}

TEST_CASE("race: the last block needs a fence before the counter", "[planted]") {
  for_each_policy(3, [] {
    CHECK(last_block<true>() == "");
    CHECK_THAT(last_block<false>(), Contains("race: read of 4 bytes of 'parts' at test_race.cpp:") &&
                                        Contains("against the write at test_race.cpp:") &&
                                        Contains("of block ("));
  });
}

__global__ void add_across_blocks_kernel(int* sum) { *sum = *sum + 1; }

__global__ void read_across_blocks_kernel(int* values, int size) {
  values[blockIdx.x] = values[(blockIdx.x + 1) % unsigned(size)];
}

TEST_CASE("race: blocks of one launch are not in order, launches are", "[planted]") {
  const TestStream stream;
  const Buffer<int> sum(std::vector<int>{0}, stream, "sum"), values(std::vector<int>(4), stream, "values");
  check_reported({"race: read of 4 bytes of 'sum'", "thread 0 of block (0,0,0)", "thread 0 of block (1,0,0)"},
                 add_across_blocks_kernel, 2, 1, sum.data());
  check_reported({"race:", "of 'values'"}, read_across_blocks_kernel, 4, 1, values.data(), 4);
  for_each_policy(1, [&] {
    CHECK(error_of([&] {
            run_kernel(add_across_blocks_kernel, 1, 1, stream, sum.data());
            run_kernel(add_across_blocks_kernel, 1, 1, stream, sum.data());
          }) == "");
  });
}

// ---- memory ----

__global__ void neighbours_kernel(uint16_t* values) { values[threadIdx.x] = uint16_t(threadIdx.x); }

__global__ void undefined_kernel(float* output, const float* input) { output[0] = input[threadIdx.x]; }

__global__ void row_end_kernel(float* output) {
  VQ_SHARED(float, tile, [2][3]);
  for (int i = 0; i < 3; ++i) tile[0][i] = tile[1][i] = 1.0f;
  output[0] = (&tile[0][0])[int(threadIdx.x) + 6];
}

TEST_CASE("race: granules are two bytes, and what was never written is not read", "[planted]") {
  const Buffer<uint16_t> halves(64);
  check_silent(neighbours_kernel, 1, 64, halves.data());
  const Buffer<float> output(1), input(4, "input");
  check_reported({"uninitialised read: read of 4 bytes of 'input' at test_race.cpp:"}, undefined_kernel, 1, 1,
                 output.data(), input.data());
  check_reported({"out of bounds: read of 4 bytes of shared memory at test_race.cpp:"}, row_end_kernel, 1, 1,
                 output.data());
}

// ---- operations of streams ----

// Reads one element more than it is said to: what its signature does not tell.
__global__ void read_word_kernel(int* output, const int* input, int at) { output[0] = input[at]; }

TEST_CASE("race: two streams may use two halves of one array, not the same eight bytes", "[planted]") {
  const auto run = [](int at) {
    return error_of([&] {
      const TestStream compute("compute"), copy("copy");
      const Buffer<int> array(std::vector<int>(128), compute, "array"), output(1, "output");
      vqlab::name_memory(array.data(), 256, "first half");
      vqlab::name_memory(array.data() + 64, 256, "second half");
      launch("fill", read_word_kernel, {1, 1}, copy, array.data(), array.data() + 1, 0);
      launch("read", read_word_kernel, {1, 1}, compute, output.data(), array.data() + 64, at);
      compute.synchronize();
      copy.synchronize();
    });
  };
  for (const Order order : kOrders) {
    reset({.order = order});
    CHECK(run(0) == "");
    CHECK_THAT(run(-64), Contains("unordered") && Contains("'first half'") &&
                             Contains("on stream 'compute'") && Contains("on stream 'copy'") &&
                             Contains("no event or wait orders them"));
  }
  reset({});
}

TEST_CASE("race: what a library leaves to nobody is not read", "[planted]") {
  const auto run = [](Access (*access)(void*, int64_t)) {
    reset({});
    return error_of([&] {
      const TestStream stream;
      const Buffer<float> output(1), input(4, "workspace");
      enqueue_library(stream.handle, "gemm", {access(input.data(), 0)},
                      [=, data = input.data()] { data[0] = 1.0f; });
      launch("read", undefined_kernel, {1, 1}, stream, output.data(), input.data());
      stream.synchronize();
    });
  };
  CHECK(run(writes) == "");
  CHECK_THAT(run(scratch), Contains("uninitialised read: read of 4 bytes of 'workspace'"));
  reset({});
}

}  // namespace
}  // namespace simt::testing
