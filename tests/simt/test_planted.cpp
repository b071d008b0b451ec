// Bugs in copies of shipped kernels (plant.cmake): each must show in the flavours of the emulated device that
// it is known for, with the place, and the same bodies must pass on the kernels as they are.
#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/lookup.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "planted_testing.hpp"

namespace vqlab {

// The entries of the planted copies.
extern const LookupVariant tiled_as_it_is, tiled_load_barrier, tiled_overwrite_barrier, tiled_past_the_end,
    tiled_rows_past_the_end, tiled_shuffle_in_branch, tiled_return_before_barrier, tiled_two_barriers,
    tiled_two_writers;
extern const ClusterSumsVariant atomic_lost_update, atomic_past_the_end, per_code_list_barrier,
    per_code_chunks_barrier, fixed_lost_update, fixed_zero_barrier;
void sum_partials_barrier(const StraightThroughOp& op, Stream stream);
void sum_unwritten_slots(const StraightThroughOp& op, Stream stream);

}  // namespace vqlab

namespace simt::testing {
namespace {

using namespace vqlab;
using vqlab::testing::normal_floats;

constexpr const char* kTiled = "kernels/codebook/lookup_variants/simt_tiled.cu";
constexpr const char* kSum = "kernels/core/tree_sum.cuh";
constexpr const char* kFixed = "kernels/codebook/cluster_sums_variants/fixed_point.cu";
constexpr const char* kAtomic = "kernels/codebook/cluster_sums_variants/atomic.cu";

// Two tiles of codes, six slabs of dimensions, a ragged last block of rows.
bool tiled_is_right(const LookupVariant& variant) {
  static const vqlab::testing::LookupProblem problem = vqlab::testing::gaussian(90, 200, 48, 1);
  return filter_is_right(variant, problem);
}

TEST_CASE("planted: the tiled lookup as it is passes", "[planted]") {
  check_silent([] { return tiled_is_right(tiled_as_it_is); });
}

void check_tiled(const char* plant, const LookupVariant& variant, const Expected& expected) {
  check_caught(
      plant, [&] { return tiled_is_right(variant); }, expected);
}

TEST_CASE("planted: tiled lookup without the barrier after the first load", "[planted]") {
  check_tiled("tiled_load_barrier", tiled_load_barrier,
              {.plain = {"wrong"}, .race = {"uninitialised read", "of shared memory at simt_tiled.cu:"}});
}

TEST_CASE("planted: tiled lookup without the barrier before a tile is overwritten", "[planted]") {
  check_tiled("tiled_overwrite_barrier", tiled_overwrite_barrier,
              {.plain = {"wrong"}, .race = {"of shared memory at simt_tiled.cu:"}});
}

TEST_CASE("planted: tiled lookup that reads a shared array past its end", "[planted]") {
  const std::string line = line_with("tiled_past_the_end", kTiled, "best.merge(tops[");
  check_tiled("tiled_past_the_end", tiled_past_the_end,
              {.plain = {"wrong"},
               .race = {"out of bounds: read of 4 bytes of shared memory at ", line},
               .asan = {"simt_tiled.cu:"}});
}

// The values are not used, so that nothing goes wrong.
TEST_CASE("planted: tiled lookup that reads rows behind the latents", "[planted]") {
  check_tiled(
      "tiled_rows_past_the_end", tiled_rows_past_the_end,
      {.plain_share = 0.0, .race = {"out of bounds: read", "simt_tiled.cu:"}, .asan = {"simt_tiled.cu:"}});
}

TEST_CASE("planted: tiled lookup with a shuffle under a lane-dependent branch", "[planted]") {
  const std::vector<std::string> texts = {
      "deadlock", "__shfl_xor_sync at simt_tiled.cu:", "__syncthreads at simt_tiled.cu:",
      "kernel 'lookup_simt_tiled' launched at simt_tiled.cu:"};
  check_tiled("tiled_shuffle_in_branch", tiled_shuffle_in_branch, {.plain = texts, .race = texts});
}

TEST_CASE("planted: tiled lookup with a return before a barrier", "[planted]") {
  const std::string line = line_with("tiled_return_before_barrier", kTiled, "every thread's best scores");
  const std::vector<std::string> texts = {"divergent barrier", "before this __syncthreads()\n  at " + line,
                                          "kernel 'lookup_simt_tiled' launched at simt_tiled.cu:"};
  check_tiled("tiled_return_before_barrier", tiled_return_before_barrier, {.plain = texts, .race = texts});
}

TEST_CASE("planted: tiled lookup with half a warp at another barrier", "[planted]") {
  const std::string line = line_with("tiled_two_barriers", kTiled, "every thread's best scores");
  const std::vector<std::string> texts = {"threads of one block wait at different __syncthreads(): " + line};
  check_tiled("tiled_two_barriers", tiled_two_barriers, {.plain = texts, .race = texts});
}

// Two threads write the same number, which no result shows.
TEST_CASE("planted: tiled lookup in which two threads store one square", "[planted]") {
  const std::string line = line_with("tiled_two_writers", kTiled, "squares[load_row] = square");
  check_tiled(
      "tiled_two_writers", tiled_two_writers,
      {.plain_share = 0.0,
       .race = {"race: write of 4 bytes of shared memory at " + line, "against the write at " + line}});
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

TEST_CASE("planted: the block sum as it is passes", "[planted]") {
  check_silent([] { return distance_is_right(run_cuda); });
}

// Under the reverse policy the warp that adds comes last, so that the barrier is not missed.
TEST_CASE("planted: block sum without the barrier after the partial sums", "[planted]") {
  check_caught(
      "sum_partials_barrier", [] { return distance_is_right(sum_partials_barrier); },
      {.plain_share = 15.0 / 22.0, .plain = {"wrong"}, .race = {"of shared memory at tree_sum.cuh:"}});
}

TEST_CASE("planted: block sum that reads shared slots nobody wrote", "[planted]") {
  const std::string line = line_with("sum_unwritten_slots", kSum, "row[r] = lanes[");
  check_caught(
      "sum_unwritten_slots", [] { return distance_is_right(sum_unwritten_slots); },
      {.plain = {"wrong"}, .race = {"uninitialised read: read of 4 bytes of shared memory at " + line}});
}

// Four rows of threads per block and as many blocks as rows ask for; some rows share a code.
bool sums_are_right(const ClusterSumsVariant& variant) {
  constexpr int64_t N = 3000, K = 7, D = 40;
  std::vector<float> latents(N * D);
  std::vector<int32_t> codes(N);
  std::vector<float> sums(K * D);
  std::vector<int32_t> counts(K);
  for (int64_t n = 0; n < N; ++n) {
    codes[size_t(n)] = int32_t(n * n % K);
    ++counts[size_t(codes[size_t(n)])];
    for (int64_t d = 0; d < D; ++d) {  // small integers: their sums are exact
      latents[size_t(n * D + d)] = float((n + d) % 5);
      sums[size_t(codes[size_t(n)] * D + d)] += float((n + d) % 5);
    }
  }
  const TestStream stream;
  const Buffer<float> x(latents, stream, "latents"), s(K * D, "sums");
  const Buffer<int32_t> k(codes, stream, "codes"), c(K, "counts");
  const int64_t bytes = variant.scratch_bytes(N, K, D);
  const Buffer<std::byte> scratch(size_t(bytes), "scratch");
  variant.run({.counts = {c.data(), {K}},
               .sums = {s.data(), {K, D}},
               .latents = {x.data(), {N, D}},
               .codes = {k.data(), {N}},
               .scratch = {scratch.data(), {bytes}}},
              stream);
  return s.download(stream) == sums && c.download(stream) == counts;
}

TEST_CASE("planted: cluster sums as they are pass", "[planted]") {
  for (const char* name : {"atomic", "per_code", "fixed_point"}) {
    INFO(name);
    check_silent([=] { return sums_are_right(find_cluster_sums_variant(Device::cuda, name)); });
  }
}

// Threads switch at synchronisation only, so that in the plain flavour nothing comes between the read and the
// write.
TEST_CASE("planted: cluster sums that count without an atomic", "[planted]") {
  const std::string line = line_with("atomic_lost_update", kAtomic, "counts[code] += 1");
  check_caught("atomic_lost_update", [] { return sums_are_right(atomic_lost_update); },
               {.plain_share = 0.0, .race = {"race: read of 4 bytes of 'counts' at " + line}});
}

TEST_CASE("planted: cluster sums with one dimension too many", "[planted]") {
  check_caught("atomic_past_the_end", [] { return sums_are_right(atomic_past_the_end); },
               {.plain = {"wrong"},
                .race = {"out of bounds: read of 4 bytes of 'latents' at atomic.cu:"},
                .asan = {"atomic.cu:"}});
}

TEST_CASE("planted: rows of a code that are added before their list is complete", "[planted]") {
  check_caught("per_code_list_barrier", [] { return sums_are_right(per_code_list_barrier); },
               {.plain_share = 0.5, .plain = {"wrong"}, .race = {"of shared memory at per_code.cu:"}});
}

TEST_CASE("planted: chunks of a code that are added before they are there", "[planted]") {
  check_caught("per_code_chunks_barrier", [] { return sums_are_right(per_code_chunks_barrier); },
               {.plain_share = 0.5, .plain = {"wrong"}, .race = {"of shared memory at per_code.cu:"}});
}

TEST_CASE("planted: fixed point that adds one half without an atomic", "[planted]") {
  const std::string line = line_with("fixed_lost_update", kFixed, "lane] += unsigned(q)");
  check_caught("fixed_lost_update", [] { return sums_are_right(fixed_lost_update); },
               {.plain_share = 0.0, .race = {"race: read of 4 bytes of shared memory at " + line}});
}

TEST_CASE("planted: fixed point that adds before its accumulators are 0", "[planted]") {
  check_caught("fixed_zero_barrier", [] { return sums_are_right(fixed_zero_barrier); },
               {.plain_share = 0.5, .plain = {"wrong"}, .race = {"of shared memory at fixed_point.cu:"}});
}

}  // namespace
}  // namespace simt::testing
