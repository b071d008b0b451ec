// What works beside the threads, in small kernels: what each wrapper of ptx.cuh and hopper.cuh does when it
// is used wrongly, in the plain flavour and under the race checker.
#include "kernels/core/hopper.cuh"
#include "race.hpp"
#include "simt_testing.hpp"

namespace simt::testing {
namespace {

using namespace vqlab;

// The report of one block of a kernel under every policy, "" if there is none; the same kind under each.
template <class... Arguments>
std::string report_of(void (*kernel)(Arguments...), unsigned threads, Arguments... arguments) {
  std::string report;
  for_each_policy(3, [&] {
    const TestStream stream;
    const std::string found =
        error_of([&] { run_kernel(kernel, dim3(1), dim3(threads), stream, arguments...); });
    if (report.empty()) report = found;
    CHECK(found.substr(0, 20) == report.substr(0, 20));
  });
  return report;
}

#define CHECK_REPORTED(report, text) CHECK_THAT(report, Catch::Matchers::Contains(text))

// ---- copies of a thread ----

void misaligned_copy(const float* from) {
  VQ_SHARED(float4, to, [2]);
  ptx::copy_16_async(reinterpret_cast<char*>(to) + 4, from, true);
}
void copy_without_wait(const float* from) {
  VQ_SHARED(float4, to, [32]);
  ptx::copy_16_async(&to[threadIdx.x], from, true);
  ptx::copies_commit();
}
void copy_without_commit(const float* from, float* out) {
  VQ_SHARED(float4, to, [32]);
  ptx::copy_16_async(&to[threadIdx.x], from + 4 * threadIdx.x, true);
  ptx::copies_wait<0>();
  out[threadIdx.x] = to[threadIdx.x].x;
}

TEST_CASE("emulator: wrong copies of a thread are reported", "[emulator]") {
  const TestStream stream;
  const Buffer<float> from(std::vector<float>(128, 1.0f), stream), out(32);
  CHECK_REPORTED(report_of(misaligned_copy, 1, static_cast<const float*>(from.data())), "misaligned");
  CHECK_REPORTED(report_of(copy_without_wait, 32, static_cast<const float*>(from.data())),
                 "before it has waited for its copies");
  CHECK_REPORTED(report_of(copy_without_commit, 32, static_cast<const float*>(from.data()), out.data()),
                 race::kEnabled ? "uninitialised read" : "before it has waited for its copies");
}

// ---- barriers ----

void barrier_before_init() {
  VQ_SHARED(hopper::MBarrier, barrier, [1]);
  hopper::arrive(barrier);
}
void barrier_twice() {
  VQ_SHARED(hopper::MBarrier, barrier, [1]);
  hopper::init_barrier(barrier, 1);
  hopper::init_barrier(barrier, 1);
}
void barrier_too_often() {
  VQ_SHARED(hopper::MBarrier, barrier, [1]);
  hopper::init_barrier(barrier, 2);
  hopper::arrive_and_expect(barrier, 16);  // nothing comes: the phase goes on
  hopper::arrive(barrier);
  hopper::arrive(barrier);
}
void barrier_nobody_ends() {
  VQ_SHARED(hopper::MBarrier, barrier, [1]);
  if (threadIdx.x == 0) hopper::init_barrier(barrier, 2);
  __syncthreads();
  if (threadIdx.x == 0) hopper::arrive(barrier);
  hopper::wait(barrier, 0);
}

// Threads pass a number on, each after the one before it, over 40 phases.
void pass_on(int* out) {
  VQ_SHARED(hopper::MBarrier, barriers, [2]);
  VQ_SHARED(int, number, [1]);
  if (threadIdx.x == 0) {
    hopper::init_barrier(&barriers[0], 1);
    hopper::init_barrier(&barriers[1], 1);
    number[0] = 0;
  }
  __syncthreads();
  const unsigned mine = threadIdx.x;
  if (mine > 1) return;
  for (uint32_t round = 0; round < 40; ++round) {
    if (mine == 1 || round > 0) hopper::wait(&barriers[1 - mine], mine == 1 ? round & 1 : (round - 1) & 1);
    number[0] += int(round);
    hopper::arrive(&barriers[mine]);
  }
  if (mine == 0) {
    hopper::wait(&barriers[1], 39 & 1);
    *out = number[0];
  }
}

TEST_CASE("emulator: phases of an mbarrier order threads, and its misuse is reported", "[emulator]") {
  CHECK_REPORTED(report_of(barrier_before_init, 1), "mbarrier: used before it is initialised");
  CHECK_REPORTED(report_of(barrier_twice, 1), "mbarrier: initialised twice");
  CHECK_REPORTED(report_of(barrier_too_often, 1), "mbarrier: more threads arrive than the 2 of a phase");
  CHECK_REPORTED(report_of(barrier_nobody_ends, 3), "3 threads: a wait on an mbarrier at test_engines.cpp:");
  for_each_policy(5, [] {
    const TestStream stream;
    const Buffer<int> out(1);
    run_kernel(pass_on, dim3(1), dim3(32), stream, out.data());
    CHECK(out.download(stream)[0] == 2 * 39 * 40 / 2);
  });
}

// ---- bulk copies and products ----

constexpr int kTileBytes = 128 * 128;

void load_to(const TensorMap map, int offset, int expected_bytes, bool fence) {
  VQ_DYN_SHARED(1024, memory);
  auto* barrier = reinterpret_cast<hopper::MBarrier*>(memory + 2 * kTileBytes);
  hopper::init_barrier(barrier, 1);
  if (fence) hopper::fence_barrier_init();
  hopper::arrive_and_expect(barrier, uint32_t(expected_bytes));
  hopper::load_tile_async(memory + offset, map, barrier, 0, 0);
  if (expected_bytes > 0) hopper::wait(barrier, 0);
}

std::string report_of_load(int offset, int expected_bytes, bool fence = true) {
  std::string report;
  for_each_policy(3, [&] {
    const TestStream stream;
    const Buffer<uint16_t> matrix(std::vector<uint16_t>(64 * 64, 0x3c00), stream, "matrix");
    const TensorMap map = make_tensor_map(matrix.data(), 64, 64, 128);
    report = error_of([&] {
      launch("load", load_to, {1, 1, 3 * kTileBytes}, stream, map, offset, expected_bytes, fence);
      stream.synchronize();
    });
  });
  return report;
}

TEST_CASE("emulator: wrong bulk copies are reported", "[emulator]") {
  CHECK(report_of_load(0, kTileBytes).empty());  // rows behind the end count, too
  CHECK_REPORTED(report_of_load(512, kTileBytes), "misaligned");
  CHECK_REPORTED(report_of_load(0, kTileBytes, false), "without fence.mbarrier_init");
  CHECK_REPORTED(report_of_load(0, kTileBytes / 2), "deadlock");
  CHECK_REPORTED(report_of_load(0, 0), "before it has waited for its bulk copies");
}

enum class Mistake { none, no_proxy_fence, no_fence, no_wait, different_operands, misaligned, half_a_group };

// Multiplies a tile that the threads have stored with itself.
void square(float* out, Mistake mistake) {
  VQ_DYN_SHARED(1024, memory);
  auto* words = reinterpret_cast<uint32_t*>(memory);
  for (unsigned i = threadIdx.x; i < kTileBytes / 4; i += blockDim.x) words[i] = 0x3c003c00;  // halves of 1
  if (mistake != Mistake::no_proxy_fence) hopper::fence_async_proxy();
  __syncthreads();
  if (mistake == Mistake::half_a_group && threadIdx.x >= 64) return;
  hopper::Accumulators d;
  for (float& element : d) element = 1.0f;
  const hopper::Operand a = hopper::operand(memory + (mistake == Mistake::misaligned ? 128 : 0));
  const hopper::Operand b =
      hopper::advance(a, mistake == Mistake::different_operands ? int(threadIdx.x / 64) * 32 : 0);
  if (mistake != Mistake::no_fence) hopper::fence_products(d);
  hopper::multiply_async(d, a, b, true);
  hopper::multiply_async(d, a, b, true);
  hopper::products_commit();
  if (mistake != Mistake::no_wait) hopper::products_wait<0>(d);
  for (int i = 0; i < 64; ++i) out[i * 128 + int(threadIdx.x)] = d[i];
}

std::string report_of_square(Mistake mistake, std::vector<float>* result = nullptr) {
  std::string report;
  for_each_policy(2, [&] {
    const TestStream stream;
    const Buffer<float> out(64 * 128, "out");
    report = error_of([&] {
      launch("square", square, {1, 128, kTileBytes}, stream, out.data(), mistake);
      stream.synchronize();
    });
    if (result != nullptr) *result = out.download(stream);
  });
  return report;
}

TEST_CASE("emulator: wrong products of a warpgroup are reported", "[emulator]") {
  std::vector<float> result;
  CHECK(report_of_square(Mistake::none, &result).empty());
  CHECK(result == std::vector<float>(64 * 128, 33.0f));
  CHECK_REPORTED(report_of_square(Mistake::no_fence), "no wgmma.fence since");
  CHECK_REPORTED(report_of_square(Mistake::different_operands), "pass different operands");
  CHECK_REPORTED(report_of_square(Mistake::misaligned), "misaligned");
  CHECK_REPORTED(report_of_square(Mistake::half_a_group), "64 threads: wgmma.fence at");
  CHECK_REPORTED(report_of_square(Mistake::no_wait), "before it has waited for its products");
  // Only the race checker knows who has stored what.
  const std::string unfenced = report_of_square(Mistake::no_proxy_fence);
  if (race::kEnabled)
    CHECK_REPORTED(unfenced,
                   "missing fence.proxy.async: read of 16 bytes of shared memory at test_engines.cpp:");
  else
    CHECK(unfenced.empty());
}

}  // namespace
}  // namespace simt::testing
