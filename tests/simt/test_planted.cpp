// Bugs in copies of shipped kernels (plant.cmake): each must show in the flavours of the emulated device that
// it is known for, with the place, and the same bodies must pass on the kernels as they are.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/lookup.hpp"
#include "kernels/codebook/lookup_recheck.cuh"
#include "kernels/codebook/straight_through.hpp"
#include "race.hpp"
#include "simt_testing.hpp"

namespace vqlab {

// The entries of the planted copies.
extern const LookupVariant tiled_as_it_is, tiled_load_barrier, tiled_overwrite_barrier, tiled_past_the_end,
    tiled_rows_past_the_end, tiled_shuffle_in_branch, tiled_return_before_barrier, tiled_two_barriers,
    tiled_two_writers;
extern const ClusterSumsVariant atomic_lost_update, atomic_past_the_end;
void sum_partials_barrier(const StraightThroughOp& op, Stream stream);
void sum_unwritten_slots(const StraightThroughOp& op, Stream stream);

// Stands for recheck_lookup in the copies: score64 would decide the rows that a bug leaves open, and so hide
// it. Only notes where their number is.
const unsigned* doubtful_count = nullptr;
void count_doubtful(const LookupOp&, const LookupWork& work, Stream) { doubtful_count = work.doubtful_count; }

}  // namespace vqlab

namespace simt::testing {
namespace {

using namespace vqlab;
using vqlab::testing::normal_floats;

#if defined(SIMT_ASAN)
constexpr bool kAsan = true;
#else
constexpr bool kAsan = false;
#endif

// "file:line" of the only line of a planted copy with this text.
std::string line_with(const std::string& plant, const std::string& file, const std::string& text) {
  std::ifstream stream(std::string(VQLAB_PLANTED) + "/" + plant + "/" + file);
  std::string line, found;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (line.find(text) == std::string::npos) continue;
    REQUIRE(found.empty());
    found = file.substr(file.rfind('/') + 1) + ":" + std::to_string(number);
  }
  REQUIRE(!found.empty());
  return found;
}

// Runs the body under every policy, the seeded ones with 10 seeds (one where one schedule shows what all
// show), and counts where it fails: "wrong" if body() is false, else the message of its Error.
struct Findings {
  unsigned runs = 0, failures = 0;
  std::string last;
};
Findings run_all(const std::function<bool()>& body) {
  Findings found;
  for_each_policy(race::kEnabled || kAsan ? 1 : 10, [&] {
    ++found.runs;
    bool right = false;
    const std::string message = error_of([&] { right = body(); });
    if (message.empty() && right) return;
    ++found.failures;
    found.last = message.empty() ? "wrong" : message;
  });
  return found;
}

// What a child process says before AddressSanitizer or UndefinedBehaviorSanitizer ends it; "" if they do not.
std::string dying_words(const std::function<bool()>& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    reset({});
    (void)error_of([&] { (void)body(); });
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char part[4096];
  for (ssize_t count; (count = read(ends[0], part, sizeof part)) > 0;) words.append(part, size_t(count));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? "" : words;
}

// What a planted bug is known for. Messages must contain all of the texts; "wrong" is a wrong result.
struct Expected {
  double plain_share = 1.0;  // of the runs of the plain flavour at least; 0: it cannot see this
  std::vector<std::string> plain = {}, race = {};
  std::vector<std::string> asan = {};  // empty: not asked
};

void check_contains(const std::string& message, const std::vector<std::string>& texts) {
  for (const std::string& text : texts) CHECK_THAT(message, Catch::Matchers::Contains(text));
}

void check_caught(const char* plant, const std::function<bool()>& body, const Expected& expected) {
  const char* flavour = race::kEnabled ? "race" : kAsan ? "asan" : "plain";
  if (kAsan) {
    if (expected.asan.empty()) return;
    const std::string words = dying_words(body);
    check_contains(words, expected.asan);
    std::printf("%-28s %-6s %s\n", plant, flavour, words.empty() ? "NOT CAUGHT" : "caught");
    return;
  }
  const Findings found = run_all(body);
  INFO(plant << ": " << found.failures << " of " << found.runs << " runs, the last: " << found.last);
  std::printf("%-28s %-6s %u of %u: %s\n", plant, flavour, found.failures, found.runs,
              found.last.substr(0, found.last.find(",\n")).c_str());
  if (race::kEnabled) {
    CHECK(found.failures == found.runs);
    check_contains(found.last, expected.race);
  } else {
    CHECK(found.failures >= expected.plain_share * found.runs);
    if (expected.plain_share == 0.0)
      CHECK(found.failures == 0);
    else
      check_contains(found.last, expected.plain);
  }
}

void check_silent(const std::function<bool()>& body) {
  const Findings found = run_all(body);
  INFO(found.last);
  CHECK(found.failures == 0);
}

constexpr const char* kTiled = "kernels/codebook/lookup_variants/simt_tiled.cu";
constexpr const char* kSum = "kernels/core/tree_sum.cuh";
constexpr const char* kAtomic = "kernels/codebook/cluster_sums_variants/atomic.cu";

// Two tiles of codes, six slabs of dimensions, a ragged last block of rows. True if the filter finds the
// nearest codes and leaves as many rows open as it should: none.
bool lookup_is_right(const LookupVariant& variant) {
  constexpr int64_t N = 90, K = 200, D = 48;
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

TEST_CASE("planted: the tiled lookup as it is passes", "[planted]") {
  check_silent([] { return lookup_is_right(tiled_as_it_is); });
}

void check_tiled(const char* plant, const LookupVariant& variant, const Expected& expected) {
  check_caught(
      plant, [&] { return lookup_is_right(variant); }, expected);
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
  variant.run({.counts = {c.data(), {K}},
               .sums = {s.data(), {K, D}},
               .latents = {x.data(), {N, D}},
               .codes = {k.data(), {N}},
               .scratch = {}},
              stream);
  return s.download(stream) == sums && c.download(stream) == counts;
}

TEST_CASE("planted: atomic cluster sums as they are pass", "[planted]") {
  check_silent([] { return sums_are_right(find_cluster_sums_variant(Device::cuda, "atomic")); });
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

}  // namespace
}  // namespace simt::testing
