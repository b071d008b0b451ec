// The emulator's own tests: intrinsics, barriers, memory, what it reports. Streams are in test_streams.cpp.
#include <algorithm>
#include <cstdlib>
#include <set>

#include "simt_testing.hpp"

namespace simt::testing {
namespace {

using Catch::Matchers::Contains;

constexpr unsigned kAll = 0xffffffffu, kLow = 0x0000ffffu, kHigh = 0xffff0000u;
constexpr uint32_t kPoison = 0xffffffffu;

struct LaneCase {
  const char* name;
  void (*kernel)(uint32_t* output);
  uint32_t (*expected)(uint32_t thread);
};

// Each thread of two warps writes one value.
const LaneCase kLaneCases[] = {
    {"threadIdx", [](uint32_t* o) { o[threadIdx.x] = threadIdx.x + blockDim.x + gridDim.x; },
     [](uint32_t t) { return t + 65; }},
    {"__shfl_sync", [](uint32_t* o) { o[threadIdx.x] = __shfl_sync(kAll, threadIdx.x * 3, 5); },
     [](uint32_t t) { return (t / 32 * 32 + 5) * 3; }},
    {"__shfl_sync width 8", [](uint32_t* o) { o[threadIdx.x] = __shfl_sync(kAll, threadIdx.x, 11, 8); },
     [](uint32_t t) { return t / 8 * 8 + 3; }},
    {"__shfl_xor_sync", [](uint32_t* o) { o[threadIdx.x] = __shfl_xor_sync(kAll, threadIdx.x, 17); },
     [](uint32_t t) { return t ^ 17; }},
    {"__shfl_xor_sync width 16",  // beyond its part of the warp a lane keeps its own
     [](uint32_t* o) { o[threadIdx.x] = __shfl_xor_sync(kAll, threadIdx.x, 16, 16); },
     [](uint32_t t) { return t; }},
    {"__shfl_down_sync", [](uint32_t* o) { o[threadIdx.x] = __shfl_down_sync(kAll, threadIdx.x, 3); },
     [](uint32_t t) { return t % 32 < 29 ? t + 3 : t; }},
    {"__shfl_up_sync width 16",
     [](uint32_t* o) { o[threadIdx.x] = __shfl_up_sync(kAll, threadIdx.x, 2, 16); },
     [](uint32_t t) { return t % 16 < 2 ? t : t - 2; }},
    {"shuffle of 8 bytes",
     [](uint32_t* o) { o[threadIdx.x] = uint32_t(__shfl_sync(kAll, threadIdx.x * 1e10, 7) / 1e10); },
     [](uint32_t t) { return t / 32 * 32 + 7; }},
    {"shuffle from outside of the mask",
     [](uint32_t* o) {
       const unsigned half = threadIdx.x % 32 < 16 ? kLow : kHigh;
       o[threadIdx.x] = __shfl_sync(half, threadIdx.x, 3);
     },
     [](uint32_t t) { return t % 32 < 16 ? t / 32 * 32 + 3 : kPoison; }},
    {"the same shuffle in two branches",
     [](uint32_t* o) {
       if (threadIdx.x % 2 == 0)
         o[threadIdx.x] = __shfl_xor_sync(kAll, threadIdx.x, 1);
       else
         o[threadIdx.x] = __shfl_xor_sync(kAll, threadIdx.x, 1);
     },
     [](uint32_t t) { return t ^ 1; }},
    {"__ballot_sync", [](uint32_t* o) { o[threadIdx.x] = __ballot_sync(kAll, threadIdx.x % 3 == 0); },
     [](uint32_t t) {
       uint32_t lanes = 0;
       for (uint32_t l = 0; l < 32; ++l) lanes |= uint32_t((t / 32 * 32 + l) % 3 == 0) << l;
       return lanes;
     }},
    {"__any_sync", [](uint32_t* o) { o[threadIdx.x] = uint32_t(__any_sync(kAll, threadIdx.x == 40)); },
     [](uint32_t t) { return uint32_t(t >= 32); }},
    {"__all_sync", [](uint32_t* o) { o[threadIdx.x] = uint32_t(__all_sync(kAll, threadIdx.x != 40)); },
     [](uint32_t t) { return uint32_t(t < 32); }},
    {"__match_any_sync", [](uint32_t* o) { o[threadIdx.x] = __match_any_sync(kAll, threadIdx.x / 4); },
     [](uint32_t t) { return 0xfu << (t % 32 / 4 * 4); }},
    {"__match_all_sync",
     [](uint32_t* o) {
       int same = 0;
       const unsigned lanes = __match_all_sync(kAll, threadIdx.x / 48, &same);
       o[threadIdx.x] = lanes + uint32_t(same);
     },
     [](uint32_t t) { return t < 32 ? kAll + 1 : 0; }},
    {"__reduce_add_sync", [](uint32_t* o) { o[threadIdx.x] = __reduce_add_sync(kAll, threadIdx.x); },
     [](uint32_t t) { return t < 32 ? 496u : 496 + 32 * 32; }},
    {"__reduce_min_sync",
     [](uint32_t* o) { o[threadIdx.x] = uint32_t(__reduce_min_sync(kAll, int(threadIdx.x) - 40)); },
     [](uint32_t t) { return uint32_t(t < 32 ? -40 : -8); }},
    {"__reduce_max_sync", [](uint32_t* o) { o[threadIdx.x] = __reduce_max_sync(kAll, threadIdx.x); },
     [](uint32_t t) { return t / 32 * 32 + 31; }},
    {"__reduce_and_sync", [](uint32_t* o) { o[threadIdx.x] = __reduce_and_sync(kAll, threadIdx.x | 256); },
     [](uint32_t t) { return t / 32 * 32 | 256; }},
    {"__reduce_or_sync", [](uint32_t* o) { o[threadIdx.x] = __reduce_or_sync(kAll, threadIdx.x & 38); },
     [](uint32_t t) { return t < 32 ? 6u : 38u; }},
    {"__reduce_xor_sync", [](uint32_t* o) { o[threadIdx.x] = __reduce_xor_sync(kAll, threadIdx.x == 9); },
     [](uint32_t t) { return uint32_t(t < 32); }},
    {"__syncwarp",
     [](uint32_t* o) {
       VQ_SHARED(uint32_t, slots, [64]);
       slots[threadIdx.x] = threadIdx.x;
       __syncwarp();
       o[threadIdx.x] = slots[threadIdx.x ^ 31];
     },
     [](uint32_t t) { return t ^ 31; }},
    {"__activemask", [](uint32_t* o) { o[threadIdx.x] = __activemask() >> threadIdx.x % 32 & 1; },
     [](uint32_t) { return 1u; }},
    {"__syncthreads_count",
     [](uint32_t* o) { o[threadIdx.x] = uint32_t(__syncthreads_count(threadIdx.x < 13)); },
     [](uint32_t) { return 13u; }},
    {"__syncthreads_and and _or",
     [](uint32_t* o) {
       const int none = __syncthreads_and(threadIdx.x != 50), one = __syncthreads_or(threadIdx.x == 50);
       o[threadIdx.x] = uint32_t(2 * none + one);
     },
     [](uint32_t) { return 1u; }},
    {"atomicCAS",  // a lock around a sum
     [](uint32_t* o) {
       VQ_SHARED(unsigned, lock, );
       VQ_SHARED(uint32_t, sum, );
       if (threadIdx.x == 0) lock = sum = 0;
       __syncthreads();
       while (atomicCAS(&lock, 0u, 1u) != 0) __nanosleep(10);
       sum += threadIdx.x;
       atomicExch(&lock, 0u);
       __syncthreads();
       o[threadIdx.x] = sum;
     },
     [](uint32_t) { return 64u * 63 / 2; }},
};

TEST_CASE("emulator: every warp and block intrinsic gives its documented value", "[emulator]") {
  for_each_policy(3, [] {
    const TestStream stream;
    const Buffer<uint32_t> output(64);
    for (const LaneCase& c : kLaneCases) {
      INFO(c.name);
      run_kernel(c.kernel, 1, 64, stream, output.data());
      const auto values = output.download(stream);
      for (uint32_t t = 0; t < 64; ++t) REQUIRE(values[t] == c.expected(t));
    }
  });
}

__global__ void atomics_kernel(int* i, unsigned* u, unsigned long long* l, float* f, double* d) {
  const unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&i[0], int(t));
  atomicSub(&i[1], int(t));
  atomicMin(&i[2], -int(t));
  atomicMax(&u[0], t);
  atomicOr(&u[1], 1u << t % 32);
  atomicAnd(&u[2], ~(1u << t % 31));
  atomicAdd(&l[0], 1ull << 40);
  atomicAdd(&f[0], float(t));
  atomicExch(&f[1], 7.0f);
  atomicAdd(&d[0], double(t));
}

TEST_CASE("emulator: every atomic gives its documented value", "[emulator]") {
  for_each_policy(3, [] {
    const TestStream stream;
    const Buffer<int> i({0, 0, 0}, stream);
    const Buffer<unsigned> u({0, 0, kAll}, stream);
    const Buffer<unsigned long long> l({0}, stream);
    const Buffer<float> f({0, 0}, stream);
    const Buffer<double> d({0}, stream);
    run_kernel(atomics_kernel, 3, 40, stream, i.data(), u.data(), l.data(), f.data(), d.data());
    const int sum = 120 * 119 / 2;
    CHECK(i.download(stream) == std::vector<int>{sum, -sum, -119});
    CHECK(u.download(stream) == std::vector<unsigned>{119, kAll, 1u << 31});
    CHECK(l.download(stream)[0] == 120ull << 40);
    CHECK(f.download(stream) == std::vector<float>{float(sum), 7.0f});
    CHECK(d.download(stream)[0] == double(sum));
  });
}

TEST_CASE("emulator: every scalar intrinsic gives its documented value", "[emulator]") {
  const float third = 1.0f / 3.0f, x = 0.1f, y = 3.7f;
  const double a = 0.1, b = 3.7;
  CHECK(__popc(0xf0f0u) == 8);
  CHECK(__popcll(0xf0f0ull << 32) == 8);
  CHECK((__ffs(0) == 0 && __ffs(8) == 4));
  CHECK((__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0));
  CHECK((__clzll(0) == 64 && __clzll(1) == 63));
  CHECK(__umulhi(0x80000000u, 6) == 3);
  CHECK((__float_as_int(-1.0f) == int(0xbf800000) && __int_as_float(0x3f800000) == 1.0f));
  CHECK((__float_as_uint(2.0f) == 0x40000000u && __uint_as_float(0x40000000u) == 2.0f));
  CHECK(__longlong_as_double(__double_as_longlong(a)) == a);
  CHECK((__fadd_rn(x, y) == x + y && __fsub_rn(x, y) == x - y && __fmul_rn(x, y) == x * y));
  CHECK((__fdiv_rn(1.0f, 3.0f) == third && __frcp_rn(3.0f) == third && __fsqrt_rn(2.25f) == 1.5f));
  CHECK(__fmaf_rn(third, 3.0f, -1.0f) == std::fmaf(third, 3.0f, -1.0f));
  CHECK(__fmaf_rn(third, 3.0f, -1.0f) != third * 3.0f - 1.0f);
  CHECK((__dadd_rn(a, b) == a + b && __dsub_rn(a, b) == a - b && __dmul_rn(a, b) == a * b));
  CHECK((__ddiv_rn(a, b) == a / b && __dsqrt_rn(2.25) == 1.5 && __fma_rn(a, b, 1.0) == std::fma(a, b, 1.0)));
  CHECK(rsqrtf(4.0f) == 0.5f);
  const float nan = __int_as_float(0x7fc00000);
  CHECK((::min(nan, 1.0f) == 1.0f && ::max(1.0f, nan) == 1.0f));  // unlike std::min
  CHECK((::min(-1, 2) == -1 && ::max(int64_t(5), int64_t(6)) == 6 && __ldg(&third) == third));
}

// ---- scheduling ----

// Who comes when: one number per thread, drawn after a first barrier.
__global__ void arrival_kernel(uint32_t* order, unsigned* next) {
  __syncthreads();
  order[blockIdx.x * blockDim.x + threadIdx.x] = (*next)++;
}

std::vector<uint32_t> arrivals(Policy policy, uint64_t seed) {
  reset({.policy = policy, .seed = seed});
  const TestStream stream;
  const Buffer<uint32_t> order(192);
  const Buffer<unsigned> next({0}, stream);
  run_kernel(arrival_kernel, 3, 64, stream, order.data(), next.data());
  return order.download(stream);
}

TEST_CASE("emulator: policies differ, seeds differ, and a seed reproduces", "[emulator]") {
  std::set<std::vector<uint32_t>> seen;
  for (const Policy policy : {Policy::random, Policy::priority})
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const auto order = arrivals(policy, seed);
      CHECK(order == arrivals(policy, seed));
      seen.insert(order);
      auto sorted = order;
      std::sort(sorted.begin(), sorted.end());
      for (uint32_t i = 0; i < sorted.size(); ++i) REQUIRE(sorted[i] == i);
    }
  CHECK(seen.size() == 8);
  const auto forward = arrivals(Policy::in_order, 1), backward = arrivals(Policy::reverse, 1);
  for (uint32_t i = 0; i < 192; ++i) {
    REQUIRE(forward[i] == i);
    REQUIRE(backward[i] == 191 - i);
  }
  // By priority, most of a warp goes before the next begins.
  const auto order = arrivals(Policy::priority, 1);
  unsigned neighbours = 0;
  for (uint32_t i = 0; i + 1 < 32; ++i) neighbours += order[i + 1] / 32 == order[i] / 32;
  CHECK(neighbours == 31);
  reset({});
}

TEST_CASE("emulator: blocks interleave when several are resident", "[emulator]") {
  const auto order_of_blocks = [](unsigned resident) {
    reset({.policy = Policy::random, .seed = 5, .resident_blocks = resident});
    const TestStream stream;
    const Buffer<uint32_t> order(192);
    const Buffer<unsigned> next({0}, stream);
    run_kernel(arrival_kernel, 3, 64, stream, order.data(), next.data());
    const auto values = order.download(stream);
    return *std::max_element(values.begin(), values.begin() + 64) -
           *std::min_element(values.begin(), values.begin() + 64);
  };
  CHECK(order_of_blocks(1) == 63);
  CHECK(order_of_blocks(3) > 63);
  reset({});
}

// ---- what is reported ----

__global__ void two_barriers_kernel(int* output) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    output[0] = 1;
    __syncthreads();
  }
}
__global__ void early_return_kernel(int* output) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  output[0] = 1;
}
// Each of three lanes waits for the next one.
__global__ void stuck_kernel(int* output) {
  if (threadIdx.x < 3) __syncwarp(1u << threadIdx.x | 1u << (threadIdx.x + 1) % 3);
  __syncthreads();
  output[0] = 1;
}
__global__ void two_meetings_kernel(int* output) {
  if (threadIdx.x < 16)
    output[0] = __shfl_sync(kAll, 1, 0);
  else
    output[0] = __any_sync(kAll, 1);
}
__global__ void exited_lane_kernel(int* output) {
  if (threadIdx.x == 31) return;
  output[0] = __shfl_sync(kAll, 1, 0);
}
__global__ void foreign_mask_kernel(int* output) { output[0] = __shfl_sync(2u, 1, 0); }
__global__ void throwing_kernel(int*) { throw std::runtime_error("thrown on purpose"); }
__global__ void trap_kernel(int*) { __trap(); }
[[maybe_unused]] __global__ void endless_frame_kernel(int* output) {
  volatile char frame[100 * 1024];
  for (int i = 0; i < 100 * 1024; ++i) frame[i] = 1;
  output[0] = frame[7];
}

struct ErrorCase {
  const char* name;
  void (*kernel)(int*);
  std::vector<std::string> parts;
};

TEST_CASE("emulator: divergence and exceptions are reported with their places", "[emulator]") {
  const ErrorCase cases[] = {
    {"two barriers",
     two_barriers_kernel,
     {"divergent barrier", "wait at different __syncthreads(): test_simt.cpp:", " and test_simt.cpp:"}},
    {"early return", early_return_kernel, {"divergent barrier", "exited", "__syncthreads()"}},
    {"two meetings",
     two_meetings_kernel,
     {"divergent warp", "meet in different operations", "__shfl_sync at test_simt.cpp", "__any_sync at"}},
    {"exited lane", exited_lane_kernel, {"divergent warp", "exited", "__shfl_sync", "test_simt.cpp:"}},
    {"foreign mask", foreign_mask_kernel, {"bad mask", "__shfl_sync", "not in its own mask"}},
    {"exception", throwing_kernel, {"exception in a kernel", "thrown on purpose", "thread ("}},
    {"trap", trap_kernel, {"trap", "test_simt.cpp:"}},
#if defined(__x86_64__) && !defined(SIMT_ASAN)
    {"stack", endless_frame_kernel, {"illegal address", "the stack of the thread is full"}},
#endif
  };
  for_each_policy(2, [&] {
    const TestStream stream;
    const Buffer<int> output(4);
    for (const ErrorCase& c : cases) {
      INFO(c.name);
      const std::string message = error_of([&] { run_kernel(c.kernel, 1, 64, stream, output.data()); });
      for (const std::string& part : c.parts) CHECK_THAT(message, Contains(part));
      CHECK_THAT(message, Contains("kernel 'test' launched at simt_testing.hpp:"));
      CHECK_THAT(message, Contains(std::string("policy ") + name_of(options().policy) + ", seed " +
                                   std::to_string(options().seed)));
    }
  });
}

TEST_CASE("emulator: a deadlock lists who waits where", "[emulator]") {
  for_each_policy(2, [] {
    const TestStream stream;
    const Buffer<int> output(1);
    const std::string message = error_of([&] { run_kernel(stuck_kernel, 1, 64, stream, output.data()); });
    CHECK_THAT(message, Contains("simt: deadlock: no thread can run; waiting:\n"));
    CHECK_THAT(message, Contains("\n    61 threads: __syncthreads at test_simt.cpp:"));
    CHECK_THAT(message, Contains(", block (0,0,0): 3-63\n"));
    CHECK_THAT(message, Contains("\n    3 threads: __syncwarp at test_simt.cpp:"));
    CHECK_THAT(message, Contains(", block (0,0,0): 0-2\n"));
  });
}

// ---- partial warps and memory ----

__global__ void partial_warp_kernel(unsigned* output, unsigned mask_of_last) {
  const unsigned mask = threadIdx.x < 32 ? kAll : mask_of_last;
  output[threadIdx.x] = __reduce_add_sync(mask, 1u);
  __syncthreads();
}

TEST_CASE("emulator: partial warps take part with the lanes they have", "[emulator]") {
  for_each_policy(2, [] {
    const TestStream stream;
    const Buffer<unsigned> output(40);
    run_kernel(partial_warp_kernel, 1, 40, stream, output.data(), 0xffu);
    const auto values = output.download(stream);
    CHECK((values[0] == 32 && values[31] == 32 && values[32] == 8 && values[39] == 8));
    CHECK_THAT(error_of([&] { run_kernel(partial_warp_kernel, 1, 40, stream, output.data(), kAll); }),
               Contains("bad mask") && Contains("does not have"));
  });
}

__global__ void shared_poison_kernel(uint32_t* output) {
  VQ_SHARED(alignas(16) uint32_t, first, [3]);
  VQ_SHARED(uint32_t, second, [5]);
  VQ_DYN_SHARED(8, dynamic);
  if (threadIdx.x == 0) {
    output[0] = first[2] & second[4] & *reinterpret_cast<uint32_t*>(dynamic + 20);
    output[1] = uint32_t(reinterpret_cast<uintptr_t>(first) % 32);
    output[2] = uint32_t(reinterpret_cast<uintptr_t>(second) % 8);
    output[3] = uint32_t(reinterpret_cast<uintptr_t>(dynamic) % 16);
    first[2] = second[4] = 1;
  }
}
[[maybe_unused]] __global__ void overrun_kernel(float* output, int64_t element, int64_t shared_element) {
  VQ_SHARED(float, tile, [8]);
  tile[shared_element] = 1.0f;
  output[element] = 1.0f;
}

TEST_CASE("emulator: shared memory is poisoned in each block and aligned as declared", "[emulator]") {
  const TestStream stream;
  const Buffer<uint32_t> output(4);
  launch("poison", shared_poison_kernel, {4, 1, 24}, stream, output.data());
  CHECK(output.download(stream) == std::vector<uint32_t>{kPoison, 16, 4, 8});
}

#if !defined(SIMT_ASAN)  // which reports these itself, and ends the program
TEST_CASE("emulator: writes outside of an array are found", "[emulator]") {
  const TestStream stream;
  const Buffer<float> output(10, "ten numbers");
  const auto error_at = [&](int64_t element, int64_t shared_element) {
    return error_of(
        [&] { run_kernel(overrun_kernel, 1, 1, stream, output.data(), element, shared_element); });
  };
  CHECK(error_at(9, 7) == "");
  CHECK_THAT(error_at(0, 8), Contains("out of bounds") && Contains("a shared array of 32 bytes"));
  CHECK_THAT(error_at(0, -1), Contains("out of bounds") && Contains("a shared array of 32 bytes"));
  reset({});
  {
    const Buffer<float> other(10, "other numbers");
    CHECK_THAT(error_of([&] { run_kernel(overrun_kernel, 1, 1, stream, other.data(), 10, 0); }),
               Contains("write past the end of 'other numbers'"));
  }
  reset({});
  {
    const Buffer<float> other(10, "other numbers");
    CHECK_THAT(error_of([&] { run_kernel(overrun_kernel, 1, 1, stream, other.data(), -1, 0); }),
               Contains("write before the start of 'other numbers'"));
  }
  reset({});
#if defined(__x86_64__)
  CHECK_THAT(error_at(1000, 0), Contains("illegal address") && Contains("4000 bytes after the start of") &&
                                    Contains("'ten numbers', which has 40"));
#endif
}
#endif

__global__ void read_global_kernel(float* output, const float* input) { output[0] = input[0]; }

TEST_CASE("emulator: new device memory reads as NaN", "[emulator]") {
  const TestStream stream;
  const Buffer<float> output(1), input(1);
  run_kernel(read_global_kernel, 1, 1, stream, output.data(), input.data());
  CHECK(std::isnan(output.download(stream)[0]));
}

__global__ void nothing_kernel(int*) {}
__global__ void large_static_kernel(int* output) {
  VQ_SHARED(int, tile, [13000]);
  output[0] = tile[0];
}

TEST_CASE("emulator: launches that a GPU refuses are refused", "[emulator]") {
  const TestStream stream;
  const Buffer<int> output(1);
  const auto error = [&](void (*kernel)(int*), dim3 grid, dim3 block, size_t shared) {
    return error_of([&] {
      simt::launch(kernel, {"limits", nullptr, grid, block, shared, Place::current()}, stream.handle,
                   output.data());
      stream.synchronize();
    });
  };
  CHECK(error(nothing_kernel, 1, 1024, 48 * 1024) == "");
  CHECK_THAT(error(nothing_kernel, 1, 1025, 0), Contains("kernel 'limits' at test_simt.cpp:"));
  CHECK_THAT(error(nothing_kernel, 1, dim3(1, 1, 65), 0), Contains("a block of (1,1,65) threads"));
  CHECK_THAT(error(nothing_kernel, 1, 0, 0), Contains("a block of (0,1,1) threads"));
  CHECK_THAT(error(nothing_kernel, 0, 1, 0), Contains("a grid of (0,1,1) blocks"));
  CHECK_THAT(error(nothing_kernel, dim3(1, 65536), 1, 0), Contains("a grid of"));
  CHECK_THAT(error(nothing_kernel, 1, 1, 49 * 1024), Contains("without cudaFuncSetAttribute"));
  CHECK_THAT(error(nothing_kernel, 1, 1, 228 * 1024), Contains("over 227 KiB"));
  CHECK_THAT(error(large_static_kernel, 1, 1, 0), Contains("static shared memory over 48 KiB"));
  // launch() of the project asks for the attribute itself.
  CHECK_NOTHROW(launch("limits", nothing_kernel, {1, 1, 100 * 1024}, stream, output.data()));
  stream.synchronize();
  CHECK_THROWS_AS(launch("limits", nothing_kernel, {1, 1, 228 * 1024}, stream, output.data()), vqlab::Error);
}

}  // namespace
}  // namespace simt::testing
