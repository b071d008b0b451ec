// The emulated device's own tests: queues, events, clocks, memory that is closed, errors.
#include <cstring>

#include "streams_testing.hpp"

namespace simt::testing {
namespace {

using Catch::Matchers::Contains;

TEST_CASE("emulator: queues run early, late, or in between", "[streams]") {
  const TestStream stream;
  const Buffer<float> a({1.0f}, stream);
  const auto done_before_wait = [&](Options wanted) {
    reset(wanted);
    const uint64_t before = stats().operations;
    for (int i = 0; i < 8; ++i) add(stream, a.data(), a.data(), 1, 1.0f);
    const uint64_t done = stats().operations - before;
    stream.synchronize();
    CHECK(stats().operations - before == 8);
    return done;
  };
  CHECK(done_before_wait({.order = Order::eager}) == 8);
  CHECK(done_before_wait({.order = Order::lazy}) == 0);
  uint64_t least = 8, most = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const uint64_t done = done_before_wait({.seed = seed, .order = Order::random});
    CHECK(done == done_before_wait({.seed = seed, .order = Order::random}));
    least = std::min(least, done);
    most = std::max(most, done);
  }
  CHECK((least < most && most > 4));
  CHECK(a.download(stream)[0] == 1.0f + 42 * 8);
  reset({});
}

TEST_CASE("emulator: an event makes another stream and the host wait", "[streams]") {
  for_each_order(10, [] {
    const TestStream one("one"), two("two");
    const Buffer<float> a({1.0f}, one, "a"), b(1, "b");
    TestEvent ready, done;
    add(one, a.data(), a.data(), 1, 1.0f);
    ready.record(one);
    ready.hold(two);
    add(two, b.data(), a.data(), 1, 10.0f);
    done.record(two);
    done.hold(one);
    add(one, a.data(), b.data(), 1, 100.0f);
    CHECK(a.download(one)[0] == 112.0f);
    while (cudaEventQuery(done.handle) == cudaErrorNotReady) {
    }
    CHECK(b.download(two)[0] == 12.0f);
  });
}

TEST_CASE("emulator: waiting concerns the recording before it, not the next one", "[streams]") {
  for_each_order(10, [] {
    const TestStream one("one"), two("two"), three("three");
    const Buffer<float> a({1.0f}, one, "a"), b(1, "b");
    TestEvent ready;
    add(one, a.data(), a.data(), 1, 1.0f);
    ready.record(one);
    ready.hold(two);
    add(two, b.data(), a.data(), 1, 10.0f);
    ready.record(three);  // done at once, although the first recording may not be
    CUDA_CHECK(cudaEventSynchronize(ready.handle));
    CHECK(b.download(two)[0] == 12.0f);
  });
}

TEST_CASE("emulator: an event never recorded holds nobody; times need two", "[streams]") {
  const TestStream stream;
  TestEvent never;
  never.hold(stream);
  never.wait();
  CHECK(cudaEventQuery(never.handle) == cudaSuccess);
  cudaEvent_t start, end;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&end));
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorInvalidResourceHandle);
  CUDA_CHECK(cudaEventRecord(start, stream.handle));
  CUDA_CHECK(cudaEventRecord(end, stream.handle));
  CUDA_CHECK(cudaEventSynchronize(end));
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, end));
  CHECK(milliseconds >= 0);
  CHECK(cudaEventElapsedTime(&milliseconds, start, never.handle) == cudaErrorInvalidResourceHandle);
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(end));
}

TEST_CASE("emulator: accesses that nothing puts in order are reported with both places", "[streams]") {
  for_each_order(3, [] {
    const TestStream one("one"), two("two");
    const Buffer<float> a({1, 2}, one, "a"), b(2, "b"), c(2, "c");
    TestEvent ready;
    add(one, b.data(), a.data(), 2, 1.0f);
    // Two reads need no order; a read after a write, a write after a write and a write after a read do.
    CHECK(error_of([&] { add(two, c.data(), a.data(), 2, 1.0f); }) == "");
    two.synchronize();
    for (const auto& [output, input, text] :
         {std::tuple{c.data(), b.data(),
                     "simt: unordered read of 'b' by add on stream 'two' at "
                     "streams_testing.hpp:15, against the write by add on stream 'one' at "
                     "streams_testing.hpp:15: no event or wait orders them"},
          std::tuple{b.data(), c.data(), "unordered write of 'b' by add on stream 'two'"},
          std::tuple{a.data(), c.data(), "unordered write of 'a' by add on stream 'two'"}}) {
      reset(options());
      add(one, b.data(), a.data(), 2, 1.0f);
      CHECK_THAT(error_of([&, out = output, in = input] { add(two, out, in, 2, 1.0f); }), Contains(text));
      add(one, b.data(), a.data(), 2, 1.0f);
      ready.record(one);
      ready.hold(two);
      CHECK(error_of([&, out = output, in = input] { add(two, out, in, 2, 1.0f); }) == "");
      two.synchronize();
    }
    // A library call declares what it touches.
    add(one, b.data(), a.data(), 2, 1.0f);
    CHECK_THAT(error_of([&] { enqueue_library(two.handle, "gemm", {reads(b.data())}, [] {}); }),
               Contains("unordered read of 'b' by gemm on stream 'two' at test_streams.cpp:"));
    CUDA_CHECK(cudaDeviceSynchronize());
  });
}

TEST_CASE("emulator: named parts of one allocation are checked one by one", "[streams]") {
  for_each_order(3, [] {
    const TestStream one("one"), two("two");
    const Buffer<float> slab(96, "slab"), input({1, 2}, one, "input");
    vqlab::name_memory(slab.data(), 128, "first");
    vqlab::name_memory(slab.data() + 32, 128, "second");
    const auto clear = [&](const TestStream& stream, size_t begin, size_t count) {
      CUDA_CHECK(cudaMemsetAsync(slab.data() + begin, 0, 4 * count, stream.handle));
    };
    add(one, slab.data() + 3, input.data(), 2, 0.0f);
    add(two, slab.data() + 32, input.data(), 2, 0.0f);
    CHECK_THAT(error_of([&] { clear(two, 8, 2); }),
               Contains("unordered write of 'first' by the memset of 'first' on stream 'two', against the "
                        "write by add on stream 'one' at streams_testing.hpp:15"));
    clear(one, 30, 4);  // a part of each
    CHECK_THAT(error_of([&] { add(two, slab.data() + 40, input.data(), 2, 0.0f); }),
               Contains("unordered write of 'second'"));
    clear(one, 66, 2);
    CHECK_THAT(error_of([&] { clear(two, 64, 1); }), Contains("unordered write of 'slab'"));
    clear(one, 0, 32);
    vqlab::name_memory(slab.data() + 16, 64, "middle");  // a new name does not forget what was done
    CHECK_THAT(error_of([&] { add(two, slab.data() + 16, input.data(), 2, 0.0f); }),
               Contains("unordered write of 'middle'"));
    CUDA_CHECK(cudaDeviceSynchronize());
  });
}

#if defined(__linux__)
TEST_CASE("emulator: host code that touches the device's memory is reported", "[streams]") {
  for_each_order(2, [] {
    const TestStream stream;
    const Buffer<float> a({1.0f, 2.0f}, stream, "a"), b(2, "b");
    CHECK_THAT(error_of([&] {
                 const volatile float* inside = a.data();
                 CHECK(inside[1] == 2.0f);  // the host goes on; the next call tells
                 stream.synchronize();
               }),
               Contains("simt: host code touches device memory 'a'"));
    CHECK_THAT(error_of([&] {
                 float* undeclared = b.data();
                 enqueue_library(stream.handle, "gemm", {reads(a.data())}, [=] { undeclared[0] = 1.0f; });
                 stream.synchronize();
               }),
               Contains("simt: gemm on stream 'compute' at test_streams.cpp:") &&
                   Contains("touches device memory 'b', which its arguments do not name"));
  });
}

TEST_CASE("emulator: host code that reads a download before its end is reported", "[streams]") {
  for_each_order(2, [] {
    const TestStream stream("copy");
    const Buffer<float> a({3.0f}, stream, "a");
    const Pinned host(1, "loss");
    const auto download = [&](bool wait) {
      CUDA_CHECK(cudaMemcpyAsync(host.data, a.data(), 4, cudaMemcpyDeviceToHost, stream.handle));
      if (wait) stream.synchronize();
      const float value = *const_cast<const volatile float*>(host.data);
      stream.synchronize();
      return value;
    };
    CHECK(download(true) == 3.0f);
    CHECK_THAT(error_of([&] { download(false); }),
               Contains(" of 'loss' by host code, against the write by the copy of 'a' to 'loss' "
                        "on stream 'copy'"));
  });
}
#endif

struct Pair {
  const float* first;
  int size;
};
__global__ void struct_kernel(float* output, Pair pair) { output[0] = pair.first[0]; }
struct Named {
  const float* first;
};
template <class Visitor>
void visit_pointers(const Named& named, const Visitor& visitor) {
  visitor(named.first);
}
__global__ void named_kernel(float* output, Named named) { output[0] = named.first[0]; }

TEST_CASE("emulator: misuse of the runtime is reported", "[streams]") {
  for_each_order(2, [] {
    const TestStream stream, other("other");
    const Buffer<float> a({1.0f}, stream, "a"), b(1, "b");
    float on_host = 0;
    CHECK_THAT(error_of([&] {
                 add({Device::cuda, nullptr}, b.data(), a.data(), 1, 0.0f);
               }),
               Contains("the default stream is used"));
    CHECK_THAT(error_of([&] { add(stream, &on_host, a.data(), 1, 0.0f); }),
               Contains("gets a pointer that is not the device's"));
    CHECK_THAT(error_of([&] { CUDA_CHECK(cudaMemsetAsync(a.data(), 0, 8, stream.handle)); }),
               Contains("8 bytes reach beyond the end of 'a'"));
    CHECK_THAT(error_of([&] {
                 cudaStream_t made;
                 CUDA_CHECK(cudaStreamCreateWithFlags(&made, cudaStreamDefault));
               }),
               Contains("waits for the default stream"));
    CHECK(cudaMemcpyAsync(a.data(), &on_host, 4, cudaMemcpyDeviceToHost, stream.handle) ==
          cudaErrorInvalidValue);
    CHECK_THAT(error_of([&] {
                 launch("pair", struct_kernel, {1, 1}, stream, b.data(), Pair{a.data(), 1});
               }),
               Contains("a struct with a pointer but without visit_pointers()"));
    launch("named", named_kernel, {1, 1}, stream, b.data(), Named{a.data()});
    CHECK_THAT(error_of([&] { add(other, a.data(), b.data(), 1, 0.0f); }), Contains("unordered"));
    CUDA_CHECK(cudaDeviceSynchronize());
  });
}

TEST_CASE("emulator: memory ends, and after an error calls fail until reset", "[streams]") {
  reset({.device_bytes = 1000});
  void* memory = nullptr;
  size_t free_bytes = 0, total_bytes = 0;
  CHECK(cudaMalloc(&memory, 1001) == cudaErrorMemoryAllocation);
  CUDA_CHECK(cudaMalloc(&memory, 600));
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  CHECK((free_bytes == 400 && total_bytes == 1000));
  CUDA_CHECK(cudaFree(memory));
  reset({.order = Order::lazy});
  const TestStream stream;
  const Buffer<float> a({1.0f}, stream);
  CHECK_THROWS_AS(add({Device::cuda, nullptr}, a.data(), a.data(), 1, 1.0f), Error);
  CHECK(cudaStreamSynchronize(stream.handle) == cudaErrorLaunchFailure);
  CHECK_THROWS_AS(add(stream, a.data(), a.data(), 1, 1.0f), Error);
  reset({});
  CHECK(a.download(stream)[0] == 1.0f);
}

__global__ void broken_kernel(float* output) {
  if (threadIdx.x == 0) __syncthreads();
  output[0] = 1.0f;
}

// What VQLAB_SYNC=1 and --sync promise: the error leaves the launch that caused it, under the name of the
// kernel, and the same for a library's call.
TEST_CASE("emulator: VQLAB_SYNC decides where a failing kernel is reported", "[streams]") {
  const char* value = std::getenv("VQLAB_SYNC");
  const bool sync = value != nullptr && std::string(value) == "1";
  reset({.order = Order::lazy});
  const TestStream stream;
  const Buffer<float> a({1.0f}, stream, "a");
  const auto launch_broken = [&] { launch("broken", broken_kernel, {1, 2}, stream, a.data()); };
  add(stream, a.data(), a.data(), 1, 1.0f);
  if (sync) {
    CHECK_THAT(error_of(launch_broken), Contains("kernel 'broken'"));
  } else {
    launch_broken();
    add(stream, a.data(), a.data(), 1, 1.0f);
    CHECK_THAT(error_of([&] { stream.synchronize(); }), Contains("kernel 'broken'"));
  }

  // A GPU has no words for what went wrong, only a status, to which check_launch() adds name and place.
  CHECK_THROWS_AS(add({Device::cuda, nullptr}, a.data(), a.data(), 1, 1.0f), Error);
  std::string text;
  try {
    vqlab::check_launch("gemm", cudaSuccess, stream, Place::current());
  } catch (const vqlab::Error& error) {
    text = error.what() + (" at " + error.where());
  }
  if (sync)
    CHECK_THAT(text, Contains("gemm: cudaErrorLaunchFailure") && Contains("test_streams.cpp:"));
  else
    CHECK(text == "");
  reset({});
}

}  // namespace
}  // namespace simt::testing
