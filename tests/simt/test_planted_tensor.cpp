// Bugs planted into copies of the lookups on tensor cores (plant.cmake).
#include "kernels/codebook/lookup.hpp"
#include "planted_testing.hpp"

namespace vqlab {

// Declared in the copies by the name recheck_lookup.
void count_doubtful(const LookupOp&, const LookupWork& work, Stream) { doubtful_count = work.doubtful_count; }

// The entries of the planted copies.
extern const LookupVariant mma_as_it_is, mma_wait_off_by_one, mma_no_barrier, mma_early_copy,
    mma_rows_barrier;
extern const LookupVariant fp32_as_it_is, fp32_no_barrier, fp32_early_copy;
extern const LookupVariant tiny_as_it_is, tiny_wait_off_by_one;
extern const LookupVariant resident_as_it_is, resident_codebook_barrier, resident_early_rows,
    resident_late_rows;
extern const LookupVariant wgmma_as_it_is, wgmma_early_release, wgmma_no_full_wait, wgmma_parity,
    wgmma_expected_bytes, wgmma_missing_release, wgmma_init_barrier, wgmma_arrivals, wgmma_no_fence,
    wgmma_early_read;

}  // namespace vqlab

namespace simt::testing {
namespace {

using namespace vqlab;

// Codes of small integers, rows equal to one of them: scores are exact in fp16 and far apart.
vqlab::testing::LookupProblem integers(int64_t N, int64_t K, int64_t D) {
  vqlab::testing::LookupProblem p = vqlab::testing::gaussian(N, K, D, 1, 3.0f);
  for (float& c : p.codebook) c = std::round(c);
  for (int64_t n = 0; n < p.N; ++n)
    std::copy_n(p.codebook.begin() + n * 7 % p.K * p.D, p.D, p.latents.begin() + n * p.D);
  return p;
}

// Three tiles of codes in two or three slabs of dimensions each, so that every ring of stages wraps around.
bool is_right(const LookupVariant& variant) {
  static const vqlab::testing::LookupProblem problem = integers(70, 300, 80);
  return filter_is_right(variant, problem);
}
// Six tiles of codes.
bool tiny_is_right(const LookupVariant& variant) {
  static const vqlab::testing::LookupProblem problem = integers(40, 700, 9);
  return filter_is_right(variant, problem);
}
// Warps that take two tiles of rows.
bool resident_is_right(const LookupVariant& variant) {
  static const vqlab::testing::LookupProblem problem = integers(600, 70, 72);
  return filter_is_right(variant, problem);
}

void check(const char* plant, const LookupVariant& variant, const Expected& expected,
           bool (*right)(const LookupVariant&) = is_right) {
  check_caught(
      plant, [&] { return right(variant); }, expected);
}

TEST_CASE("planted: the mma.sync lookup as it is passes", "[planted]") {
  check_silent([] { return is_right(mma_as_it_is); });
}

TEST_CASE("planted: mma.sync lookup that waits for one group of copies too few", "[planted]") {
  check("mma_wait_off_by_one", mma_wait_off_by_one,
        {.plain = {"before it has waited for its copies"}, .race = {"uninitialised read"}});
}

TEST_CASE("planted: mma.sync lookup without the barrier after the wait", "[planted]") {
  check("mma_no_barrier", mma_no_barrier,
        {.plain_share = 0.8, .plain = {"wrong"}, .race = {"of shared memory at mma_sync.cu:"}});
}

TEST_CASE("planted: mma.sync lookup that overwrites a stage before all have read it", "[planted]") {
  check("mma_early_copy", mma_early_copy,
        {.plain_share = 0.4, .plain = {"wrong"}, .race = {"race: write of 16 bytes of shared memory"}});
}

TEST_CASE("planted: mma.sync lookup without the barrier after the rows are rounded", "[planted]") {
  check("mma_rows_barrier", mma_rows_barrier,
        {.plain_share = 0.4, .plain = {"wrong"}, .race = {"of shared memory at "}});
}

TEST_CASE("planted: the simt_fp32, tiny_d and cb_resident lookups as they are pass", "[planted]") {
  check_silent([] { return is_right(fp32_as_it_is); });
  check_silent([] { return tiny_is_right(tiny_as_it_is); });
  check_silent([] { return resident_is_right(resident_as_it_is); });
}

TEST_CASE("planted: simt_fp32 lookup without the barrier after the wait", "[planted]") {
  check("fp32_no_barrier", fp32_no_barrier,
        {.plain_share = 0.8, .plain = {"wrong"}, .race = {"of shared memory at simt_fp32.cu:"}});
}

TEST_CASE("planted: simt_fp32 lookup that overwrites a stage before all have read it", "[planted]") {
  check("fp32_early_copy", fp32_early_copy,
        {.plain_share = 0.4, .plain = {"wrong"}, .race = {"of shared memory at simt_fp32.cu:"}});
}

TEST_CASE("planted: tiny_d lookup that waits for one group of copies too few", "[planted]") {
  check("tiny_wait_off_by_one", tiny_wait_off_by_one,
        {.plain = {"before it has waited for its copies"}, .race = {"uninitialised read"}}, tiny_is_right);
}

TEST_CASE("planted: cb_resident lookup without the barrier after the codebook", "[planted]") {
  check("resident_codebook_barrier", resident_codebook_barrier,
        {.plain_share = 0.8, .plain = {"wrong"}, .race = {"of shared memory at cb_resident.cu:"}},
        resident_is_right);
}

// The shuffles between keep the lanes together, but order no memory.
TEST_CASE("planted: cb_resident lookup that overwrites rows before all lanes have read them", "[planted]") {
  check("resident_early_rows", resident_early_rows,
        {.plain_share = 0.0, .race = {"race: write of 16 bytes of shared memory"}}, resident_is_right);
}

TEST_CASE("planted: cb_resident lookup that reads rows before all lanes have brought them", "[planted]") {
  check("resident_late_rows", resident_late_rows,
        {.plain_share = 0.4, .plain = {"wrong"}, .race = {"of shared memory at cb_resident.cu:"}},
        resident_is_right);
}

TEST_CASE("planted: the wgmma lookup as it is passes", "[planted]") {
  check_silent([] { return is_right(wgmma_as_it_is); });
}

TEST_CASE("planted: wgmma lookup that releases a stage before its products are done", "[planted]") {
  check("wgmma_early_release", wgmma_early_release,
        {.plain_share = 0.15, .plain = {"wrong"}, .race = {"the copy engine", "the tensor core"}});
}

TEST_CASE("planted: wgmma lookup that does not wait for its stage", "[planted]") {
  check("wgmma_no_full_wait", wgmma_no_full_wait,
        {.plain_share = 0.5, .plain = {"wrong"}, .race = {"the tensor core"}});
}

TEST_CASE("planted: wgmma lookup with a parity the wrong way round", "[planted]") {
  const std::vector<std::string> texts = {"deadlock", "a wait on an mbarrier at wgmma_plain.cu:"};
  check("wgmma_parity", wgmma_parity, {.plain = texts, .race = texts});
}

TEST_CASE("planted: wgmma lookup that expects too many bytes", "[planted]") {
  const std::vector<std::string> texts = {"deadlock", "a wait on an mbarrier at wgmma_plain.cu:"};
  check("wgmma_expected_bytes", wgmma_expected_bytes, {.plain = texts, .race = texts});
}

TEST_CASE("planted: wgmma lookup that keeps a stage", "[planted]") {
  const std::vector<std::string> texts = {"deadlock", "a wait on an mbarrier at wgmma_plain.cu:"};
  check("wgmma_missing_release", wgmma_missing_release, {.plain = texts, .race = texts});
}

TEST_CASE("planted: wgmma lookup without a barrier after the mbarriers are made", "[planted]") {
  check("wgmma_init_barrier", wgmma_init_barrier,
        {.plain_share = 0.15,
         .plain = {"mbarrier: used before it is initialised"},
         .race = {"mbarrier: used before it is initialised"}});
}

TEST_CASE("planted: wgmma lookup whose stages wait for one warpgroup only", "[planted]") {
  check("wgmma_arrivals", wgmma_arrivals,
        {.plain_share = 0.6, .plain = {"a wait on an mbarrier"}, .race = {"a wait on an mbarrier"}});
}

TEST_CASE("planted: wgmma lookup without wgmma.fence", "[planted]") {
  const std::vector<std::string> texts = {
      "wgmma: no wgmma.fence since the accumulators could last be touched", "wgmma_plain.cu:"};
  check("wgmma_no_fence", wgmma_no_fence, {.plain = texts, .race = texts});
}

TEST_CASE("planted: wgmma lookup that reads its accumulators too early", "[planted]") {
  check("wgmma_early_read", wgmma_early_read,
        {.plain = {"before it has waited for its products"}, .race = {"the copy engine"}});
}

}  // namespace
}  // namespace simt::testing
