#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>

#include "engine/ceilings.hpp"
#include "engine/cluster_sums_case.hpp"
#include "engine/io/json.hpp"
#include "engine/lookup_case.hpp"
#include "engine/measure.hpp"
#include "planted_variant.hpp"
#include "testing.hpp"

namespace vqlab {
namespace {

using testing::require_failure;
using testing::run_vqlab;

// A variant with a planted defect: the default's answer, then `spoil`.
template <class Op, const Variant<Op>& (*right)(), void (*spoil)(const Op&)>
Variant<Op> spoiled() {
  return testing::planted_variant<Op>([](const Op& op, Stream stream) {
    right().run(op, stream);
    spoil(op);
  });
}
const LookupVariant& right_lookup() { return find_lookup_variant(Device::cpu, "oracle"); }
const ClusterSumsVariant& right_sums() { return *cluster_sums_variants(Device::cpu).front(); }
template <void (*spoil)(const LookupOp&)>
LookupVariant planted() {
  return spoiled<LookupOp, right_lookup, spoil>();
}
template <void (*spoil)(const ClusterSumsOp&)>
ClusterSumsVariant planted_sums() {
  return spoiled<ClusterSumsOp, right_sums, spoil>();
}
void spoil_nothing(const LookupOp&) {}
void spoil_last_row(const LookupOp& op) {
  int32_t& code = op.codes.data[op.latents[0] - 1];
  code = (code + 1) % int32_t(op.codebook[0]);
}
// Of equal codes the higher one wins.
void spoil_ties(const LookupOp& op) {
  const int64_t half = op.codebook[0] / 2, bytes = op.codebook[1] * 4;
  for (int64_t n = 0; n < op.latents[0]; ++n) {
    const int64_t k = op.codes.data[n], twin = k + half;
    const float* codes = op.codebook.data;
    if (twin < op.codebook[0] &&
        std::memcmp(codes + k * op.codebook[1], codes + twin * op.codebook[1], size_t(bytes)) == 0)
      op.codes.data[n] = int32_t(twin);
  }
}
void spoil_report(const LookupOp& op) { op.first_bad_row.data[0] = 0; }

void spoil_nothing(const ClusterSumsOp&) {}
void spoil_count(const ClusterSumsOp& op) { ++op.counts.data[0]; }
void spoil_last_bit(const ClusterSumsOp& op) {
  float& sum = op.sums.data[op.sums.size() - 1];
  sum = std::nextafter(sum, 1e30f);
}
// The sums of each code in row order, without chunks: other bits where a code has more rows than a chunk.
void spoil_order(const ClusterSumsOp& op) {
  const int64_t N = op.latents[0], D = op.latents[1];
  std::fill_n(op.sums.data, op.sums.size(), 0.0f);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t d = 0; d < D; ++d) op.sums.data[op.codes.data[n] * D + d] += op.latents.data[n * D + d];
}

template <class Case, class Variant>
int64_t wrong_rows(Case& problem, const Variant& variant) {
  problem.run(variant);
  return problem.wrong();
}

const Runtime& cpu() {
  static const Runtime runtime("cpu", 0);
  return runtime;
}

}  // namespace

TEST_CASE("measure: median spread and settling of samples", "[unit]") {
  const MeasureOptions options{.min_samples = 4, .precision = 0.01};
  const Timing odd = summarise({5.0, 1.0, 2.0, 4.0, 3.0}, options);
  CHECK(odd.median_ms == 3.0);
  CHECK(odd.iqr_ms == 2.0);
  CHECK(odd.min_ms == 1.0);
  CHECK(odd.samples == 5);
  CHECK(!odd.settled);
  CHECK(summarise({1.0, 2.0, 3.0, 4.0}, options).median_ms == 2.5);
  CHECK(summarise({7.0, 7.0, 7.0, 7.0}, options).settled);
  CHECK(!summarise({7.0, 7.0, 7.0}, options).settled);
  // Relative deviation of the median: 1.2533 / 1.349 * iqr / (median * sqrt(4)).
  CHECK(summarise({10.0, 10.0, 10.2, 10.2}, options).settled);   // iqr 0.2: 0.0092
  CHECK(!summarise({10.0, 10.0, 10.3, 10.3}, options).settled);  // iqr 0.3: 0.0137
  CHECK_THROWS_AS(summarise({}, options), Error);
}

TEST_CASE("measure: candidates take turns and a slow one stops at its time-out", "[unit]") {
  std::string calls;
  const auto spin = [](double seconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end) continue;
  };
  const std::vector<std::function<void()>> candidates = {[&] { calls += 'a', spin(1e-3); },
                                                         [&] { calls += 'b', spin(0.06); }};
  // No spread is below a negative precision, so only the time-out ends it.
  const auto timings =
      measure(candidates, {.min_samples = 3, .precision = -1.0, .seconds = 0.1, .cold = false}, cpu());
  CHECK(calls.substr(0, 4) == "abab");  // one call each to warm up, then samples in turn
  CHECK(timings[1].samples == 1);       // 60 ms to warm up and 60 ms pass 100 ms
  CHECK(timings[1].median_ms >= 60.0);
  CHECK(timings[0].samples >= 1);
  CHECK(timings[0].samples <= 99);
  CHECK(timings[0].min_ms >= 1.0);
  CHECK(!timings[0].settled);
  CHECK(int64_t(calls.size()) == 2 + timings[0].samples + timings[1].samples);
}

TEST_CASE("measure: ceilings are positive and finite", "[unit]") {
  const Ceilings ceilings = measure_ceilings(cpu(), 0.05);
  CHECK(ceilings.copy_gb_s > 0.1);
  CHECK(ceilings.copy_gb_s < 1e5);
  REQUIRE(ceilings.product_tflop_s);
  CHECK(*ceilings.product_tflop_s > 1e-4);
  CHECK(*ceilings.product_tflop_s < 1e3);
  CHECK(ceilings.product_problem.empty());
}

TEST_CASE("compare: verification accepts every variant and catches planted defects", "[unit]") {
  LookupCase plain(cpu(), {100, 40, 5}, CaseData::plain, 1000),
      tied(cpu(), {100, 40, 5}, CaseData::hard, 1000);
  CHECK(plain.rows_checked() == 100);
  for (const LookupVariant* variant : lookup_variants(Device::cpu)) {
    CHECK(wrong_rows(plain, *variant) == 0);
    CHECK(wrong_rows(tied, variant->name) == 0);
  }
  CHECK(wrong_rows(plain, planted<spoil_nothing>()) == 0);
  CHECK(wrong_rows(plain, planted<spoil_last_row>()) == 1);
  CHECK(wrong_rows(plain, planted<spoil_report>()) == 100);
  CHECK(wrong_rows(plain, planted<spoil_ties>()) == 0);  // no ties in these data, hence the others
  CHECK(wrong_rows(tied, planted<spoil_ties>()) == 100);
}

TEST_CASE("compare: verification of cluster sums catches planted defects", "[unit]") {
  ClusterSumsCase plain(cpu(), {3000, 40, 5}, CaseData::plain), hard(cpu(), {3000, 40, 5}, CaseData::hard);
  CHECK(plain.rows_checked() == 40);
  CHECK(plain.largest_share() > 0.05);
  CHECK(plain.largest_share() < 0.3);
  CHECK(hard.largest_share() > 0.85);
  for (ClusterSumsCase* problem : {&plain, &hard}) {
    for (const ClusterSumsVariant* variant : cluster_sums_variants(Device::cpu))
      CHECK(wrong_rows(*problem, variant->name) == 0);
    CHECK(wrong_rows(*problem, planted_sums<spoil_nothing>()) == 0);
    CHECK(wrong_rows(*problem, planted_sums<spoil_count>()) == 1);
    CHECK(wrong_rows(*problem, planted_sums<spoil_last_bit>()) == 1);
  }
  CHECK(wrong_rows(plain, planted_sums<spoil_order>()) > 0);
  CHECK(wrong_rows(hard, planted_sums<spoil_order>()) == 0);  // sums of integers do not round
  CHECK(ClusterSumsCase(cpu(), {1, 1, 1}, CaseData::plain).largest_share() == 1.0);
}

TEST_CASE("compare: a sample of rows includes the first and the last", "[unit]") {
  LookupCase sampled(cpu(), {1001, 16, 3}, CaseData::plain, 10);
  CHECK(sampled.rows_checked() == 10);
  CHECK(wrong_rows(sampled, planted<spoil_nothing>()) == 0);
  CHECK(wrong_rows(sampled, planted<spoil_last_row>()) == 1);
  CHECK(sampled.largest_share() <= 1.0);
  CHECK(LookupCase(cpu(), {50, 1, 3}, CaseData::plain, 50).largest_share() == 1.0);
}

TEST_CASE("compare: numbers of a case are standard normal", "[unit]") {
  constexpr int64_t kCount = 100001;
  const std::vector<float> numbers = case_numbers(kCount, 0, CaseData::plain);
  double sum = 0.0, squares = 0.0, products = 0.0;
  for (size_t i = 0; i < numbers.size(); ++i) {
    sum += double(numbers[i]), squares += double(numbers[i]) * double(numbers[i]);
    if (i > 0) products += double(numbers[i]) * double(numbers[i - 1]);
  }
  // Five standard deviations of the mean, of the mean square (sqrt(2) wider) and of the mean product.
  const double limit = 5.0 / std::sqrt(double(kCount));
  CHECK(std::fabs(sum / kCount) < limit);
  CHECK(std::fabs(squares / kCount - 1.0) < limit * std::sqrt(2.0));
  CHECK(std::fabs(products / kCount) < limit);
  for (const float number : case_numbers(1000, 1, CaseData::hard)) CHECK(number == std::nearbyint(number));
}

TEST_CASE("compare: json has the documented keys", "[cli]") {
  const testing::CommandResult result =
      run_vqlab("compare --device cpu --shape 300,32,4 --shape 65,7,3 --seconds 0 --json");
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const Json json = parse_json(result.out, "stdout");
  CHECK(json.at("device").as_string() == "cpu");
  CHECK(json.at("ceilings").at("copy_gb_s").as_number() > 0.0);
  CHECK(json.at("ceilings").at("product_tflop_s").as_number() > 0.0);
  const Json::Array& cases = json.at("cases").items();
  REQUIRE(cases.size() == 2 * lookup_variants(Device::cpu).size());
  for (const Json& row : cases) {
    CHECK(row.at("op").as_string() == "lookup");
    CHECK(row.at("device").as_string() == "cpu");
    CHECK(row.at("dtype").as_string() == "fp32");
    CHECK(row.at("exact").as_bool());
    CHECK(row.at("verified").as_bool());
    CHECK(row.at("wrong").as_integer() == 0);
    CHECK(row.at("status").as_string() == "ok");
    CHECK(row.at("deterministic").as_bool());
    CHECK(row.at("registers").is_null());
    CHECK(row.at("shared_bytes").is_null());
    for (const char* key : {"ms_median", "gb_s", "tflop_s", "share_of_ceiling"})
      CHECK(row.at(key).as_number() > 0.0);
    CHECK(row.at("ms_iqr").as_number() >= 0.0);
    CHECK(row.at("repro").as_string().find(row.at("variant").as_string()) != std::string::npos);
  }
  CHECK(cases[0].at("shape").items()[0].as_integer() == 300);
  CHECK(cases[0].at("rows_checked").as_integer() == 300 + 256);
}

TEST_CASE("compare: --verify checks and repeats the variants and times nothing", "[cli]") {
  const testing::CommandResult result =
      run_vqlab("compare --device cpu --shape 31,3,7 --shape 1,3,1 --verify --json");
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const Json json = parse_json(result.out, "stdout");
  CHECK(json.at("ceilings").at("copy_gb_s").is_null());
  REQUIRE(json.at("cases").items().size() == 2 * lookup_variants(Device::cpu).size());
  for (const Json& row : json.at("cases").items()) {
    CHECK(row.at("verified").as_bool());
    CHECK(row.at("deterministic").as_bool());
    CHECK(row.at("ms_median").is_null());
    CHECK(row.at("samples").as_integer() == 0);
  }
}

TEST_CASE("compare: cluster sums are verified and timed", "[cli]") {
  const testing::CommandResult result =
      run_vqlab("compare --op cluster_sums --device cpu --shape 3000,32,4 --seconds 0 --json");
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const Json json = parse_json(result.out, "stdout");
  REQUIRE(json.at("cases").items().size() == cluster_sums_variants(Device::cpu).size());
  const Json& row = json.at("cases").items()[0];
  CHECK(row.at("op").as_string() == "cluster_sums");
  CHECK(row.at("variant").as_string() == "counting_sort");
  CHECK(row.at("verified").as_bool());
  CHECK(row.at("deterministic").as_bool());
  CHECK(row.at("status").as_string() == "ok");
  CHECK(row.at("rows_checked").as_integer() == 32 + 32);  // codes, of two problems
  CHECK(row.at("gb_s").as_number() > 0.0);
  CHECK(row.at("repro").as_string().find("--op cluster_sums --variant counting_sort") != std::string::npos);
}

TEST_CASE("compare: the list shows every variant", "[cli]") {
  for (const VariantOp* op : variant_ops()) {
    const std::string command = "compare --list --op " + std::string(op->name);
    const testing::CommandResult text = run_vqlab(command), json = run_vqlab(command + " --json");
    CHECK(text.exit_code == 0);
    size_t count = 0;
    for (const Device device : {Device::cpu, Device::cuda})
      for (const VariantInfo& variant : op->variants(device)) {
        CHECK(text.out.find(std::string(variant.idea)) != std::string::npos);
        ++count;
      }
    CHECK(parse_json(json.out, "stdout").at("variants").items().size() == count);
    const testing::CommandResult cpu_only = run_vqlab(command + " --device cpu --json");
    CHECK(parse_json(cpu_only.out, "stdout").at("variants").items().size() ==
          op->variants(Device::cpu).size());
  }
}

TEST_CASE("compare: the device of a variant is respected", "[cli][bad-input]") {
  for (const VariantOp* op : variant_ops())
    for (const VariantInfo& variant : op->variants(Device::cuda))
      require_failure(
          run_vqlab(fmt::format("compare --device cpu --op {} --variant {}", op->name, variant.name)), 2,
          "does not run on cpu", "--device cuda");
  if (!cuda_problem().empty())
    require_failure(run_vqlab("compare --device cuda"), 6, "no CUDA device can be used", "--device cpu");
}

TEST_CASE("compare: one code that takes most rows is not trusted", "[cli]") {
  const testing::CommandResult result =
      run_vqlab("compare --device cpu --shape 1,5,2 --variant fused,oracle --seconds 0 --json");
  REQUIRE(result.exit_code == 0);
  const Json json = parse_json(result.out, "stdout");
  for (const Json& row : json.at("cases").items()) CHECK(row.at("status").as_string() == "MISTRUSTED");
}

TEST_CASE("compare: wrong options are refused with a hint", "[cli][bad-input]") {
  require_failure(run_vqlab("compare --device cpu --variant fusd"), 2, "unknown lookup variant 'fusd'",
                  "'fused'");
  require_failure(run_vqlab("compare --device cpu --variant fused,"), 2, "unknown lookup variant ''",
                  "--list");
  require_failure(run_vqlab("compare --op lokup"), 2, "unknown op 'lokup'", "'lookup'");
  require_failure(run_vqlab("compare --op x"), 2, "unknown op 'x'", "cluster_sums");
  require_failure(run_vqlab("compare --device cpu --op cluster_sums --variant counting_sord"), 2,
                  "unknown cluster_sums variant", "'counting_sort'");
  for (const char* shape :
       {"1,2", "1,2,3,4", "0,5,5", "-1,5,5", "1,2,3x", "a,b,c", ",,", "99999999999999999999,1,1"})
    require_failure(run_vqlab(std::string("compare --shape ") + shape), 2, "is not a shape N,K,D",
                    "65536,512,64");
  for (const char* shape : {"4294967296,1,1", "2000000000,2000000000,2000000000"})
    require_failure(run_vqlab(std::string("compare --shape ") + shape), 2, "does not fit", "fewer");
}

}  // namespace vqlab
