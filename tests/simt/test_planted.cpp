// Bugs in copies of shipped kernels (plant.cmake): each must show, under the policies that it is known for,
// and the same test must pass on the kernel as it is under every policy.
#include <algorithm>

#include "kernels/codebook/lookup.hpp"
#include "kernels/codebook/lookup_recheck.cuh"
#include "kernels/codebook/straight_through.hpp"
#include "simt_testing.hpp"

namespace vqlab {

// The entries of the planted copies.
extern const LookupVariant tiled_as_it_is, tiled_load_barrier, tiled_overwrite_barrier, tiled_past_the_end,
    tiled_shuffle_in_branch, tiled_return_before_barrier;
void sum_partials_barrier(const StraightThroughOp& op, Stream stream);
void sum_unwritten_slots(const StraightThroughOp& op, Stream stream);

// Stands for recheck_lookup in the copies: score64 would decide the rows that a bug leaves open, and so hide
// it. Only notes where their number is.
const unsigned* doubtful_count = nullptr;
void count_doubtful(const LookupOp&, const LookupWork& work, Stream) { doubtful_count = work.doubtful_count; }

}  // namespace vqlab

namespace simt::testing {
namespace {

using Catch::Matchers::Contains;
using namespace vqlab;
using vqlab::testing::normal_floats;

// Runs the body under every policy, the seeded ones with 10 seeds, and counts where it fails: "wrong" if
// body() is false, else the message of its Error.
struct Findings {
  unsigned runs = 0, failures = 0;
  std::string last;
};
Findings run_all(const std::function<bool()>& body) {
  Findings found;
  for_each_policy(10, [&] {
    ++found.runs;
    bool right = false;
    const std::string message = error_of([&] { right = body(); });
    if (message.empty() && right) return;
    ++found.failures;
    found.last = message.empty() ? "wrong" : message;
  });
  return found;
}

// Two tiles of codes, six slabs of dimensions, a ragged last block of rows. True if the filter finds the
// nearest codes and leaves as many rows open as it should: none.
bool lookup_is_right(const LookupVariant& variant) {
  constexpr int64_t N = 70, K = 200, D = 48;
  static const std::vector<float> latents = normal_floats(N * D, 1), codebook = normal_floats(K * D, 2);
  static const std::vector<int32_t> expected = [] {
    std::vector<int32_t> codes(N), bad(1);
    std::vector<std::byte> scratch(size_t(lookup_scratch_bytes(Device::cpu, N, K, D)));
    run_cpu(LookupOp{.codes = {codes.data(), {N}},
                     .first_bad_row = {bad.data(), {1}},
                     .latents = {latents.data(), {N, D}},
                     .codebook = {codebook.data(), {K, D}},
                     .scratch = {scratch.data(), {int64_t(scratch.size())}}});
    return codes;
  }();
  const TestStream stream;
  const Buffer<float> x(latents, stream, "latents"), c(codebook, stream, "codebook");
  const Buffer<int32_t> codes(N, "codes"), bad(1, "first bad row");
  const int64_t bytes = variant.scratch_bytes(N, K, D);
  const Buffer<std::byte> scratch(size_t(bytes), "scratch");
  variant.run({.codes = {codes.data(), {N}},
               .first_bad_row = {bad.data(), {1}},
               .latents = {x.data(), {N, D}},
               .codebook = {c.data(), {K, D}},
               .scratch = {scratch.data(), {bytes}}},
              stream);
  unsigned doubtful = 0;
  CUDA_CHECK(cudaMemcpyAsync(&doubtful, doubtful_count, 4, cudaMemcpyDeviceToHost, stream.handle));
  return codes.download(stream) == expected && doubtful == 0;
}

TEST_CASE("planted: the tiled lookup as it is passes under every policy", "[planted]") {
  const Findings found = run_all([] { return lookup_is_right(tiled_as_it_is); });
  INFO(found.last);
  CHECK((found.runs == 22 && found.failures == 0));
}

TEST_CASE("planted: tiled lookup without the barrier after the first load", "[planted]") {
  const Findings found = run_all([] { return lookup_is_right(tiled_load_barrier); });
  CHECK((found.failures == found.runs && found.last == "wrong"));
}

TEST_CASE("planted: tiled lookup without the barrier before a tile is overwritten", "[planted]") {
  const Findings found = run_all([] { return lookup_is_right(tiled_overwrite_barrier); });
  CHECK((found.failures == found.runs && found.last == "wrong"));
}

TEST_CASE("planted: tiled lookup that reads a shared array past its end", "[planted]") {
  const Findings found = run_all([] { return lookup_is_right(tiled_past_the_end); });
  CHECK((found.failures == found.runs && found.last == "wrong"));
}

TEST_CASE("planted: tiled lookup with a shuffle under a lane-dependent branch", "[planted]") {
  const Findings found = run_all([] { return lookup_is_right(tiled_shuffle_in_branch); });
  CHECK(found.failures == found.runs);
  CHECK_THAT(found.last, Contains("deadlock") && Contains("__shfl_xor_sync at simt_tiled.cu:") &&
                             Contains("__syncthreads at simt_tiled.cu:") &&
                             Contains("kernel 'lookup_simt_tiled' launched at simt_tiled.cu:"));
}

TEST_CASE("planted: tiled lookup with a return before a barrier", "[planted]") {
  const Findings found = run_all([] { return lookup_is_right(tiled_return_before_barrier); });
  CHECK(found.failures == found.runs);
  CHECK_THAT(found.last, Contains("divergent barrier") &&
                             Contains("before this __syncthreads()\n  at simt_tiled.cu:") &&
                             Contains("kernel 'lookup_simt_tiled' launched at simt_tiled.cu:"));
}

// Three blocks of terms, the last one ragged.
bool distance_is_right(void (*run)(const StraightThroughOp&, Stream)) {
  constexpr int64_t N = 700, K = 5, D = 13;
  const std::vector<float> latents = normal_floats(N * D, 3), codebook = normal_floats(K * D, 4);
  std::vector<int32_t> codes(N);
  for (int64_t n = 0; n < N; ++n) codes[size_t(n)] = int32_t(n % K);
  std::vector<float> quantized(N * D), distance(1), block_sums(size_t(sum_blocks(N * D)));
  run_cpu(StraightThroughOp{.quantized = {quantized.data(), {N, D}},
                            .distance = {distance.data(), {1}},
                            .latents = {latents.data(), {N, D}},
                            .codebook = {codebook.data(), {K, D}},
                            .codes = {codes.data(), {N}},
                            .block_sums = {block_sums.data(), {sum_blocks(N * D)}}});
  const TestStream stream;
  const Buffer<float> x(latents, stream, "latents"), c(codebook, stream, "codebook");
  const Buffer<int32_t> k(codes, stream, "codes");
  const Buffer<float> q(N * D, "quantized"), d(1, "distance"), sums(block_sums.size(), "block sums");
  run(StraightThroughOp{.quantized = {q.data(), {N, D}},
                        .distance = {d.data(), {1}},
                        .latents = {x.data(), {N, D}},
                        .codebook = {c.data(), {K, D}},
                        .codes = {k.data(), {N}},
                        .block_sums = {sums.data(), {sum_blocks(N * D)}}},
      stream);
  return q.download(stream) == quantized && d.download(stream) == distance;
}

TEST_CASE("planted: the block sum as it is passes under every policy", "[planted]") {
  const Findings found = run_all([] { return distance_is_right(run_cuda); });
  INFO(found.last);
  CHECK((found.runs == 22 && found.failures == 0));
}

// Under the reverse policy the warp that adds comes last, so that the barrier is not missed.
TEST_CASE("planted: block sum without the barrier after the partial sums", "[planted]") {
  const Findings found = run_all([] { return distance_is_right(sum_partials_barrier); });
  CHECK((found.failures >= 15 && found.last == "wrong"));
}

TEST_CASE("planted: block sum that reads shared slots nobody wrote", "[planted]") {
  const Findings found = run_all([] { return distance_is_right(sum_unwritten_slots); });
  CHECK((found.failures == found.runs && found.last == "wrong"));
}

}  // namespace
}  // namespace simt::testing
