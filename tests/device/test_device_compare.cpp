// What `compare` and `doctor` do with the variants of the device under test: each is right on both kinds of
// data, and planted defects are found.
#include <bit>

#include "device_testing.hpp"
#include "engine/cluster_sums_case.hpp"
#include "engine/comparison.hpp"
#include "engine/lookup_case.hpp"
#include "kernels/core/fill.hpp"

namespace vqlab::testing {
namespace {

const VariantShape kShapes[] = {{70, 33, 5}, {1, 1, 1}, {3, 2, 1}, {150, 9, 36}, {300, 4, 3}};

// Overwrites element i with other bits.
template <class T>
void spoil(const View<T>& view, int64_t i, int32_t bits, Stream stream) {
  vqlab::run(FillOp{{reinterpret_cast<float*>(view.data + i), {1}}, std::bit_cast<float>(bits)}, stream);
}

bool supports_all(int64_t, int64_t, int64_t) { return true; }
int64_t no_scratch(int64_t, int64_t, int64_t) { return 0; }

LookupVariant planted(void (*run)(const LookupOp& op, Stream stream)) {
  return {.name = "planted",
          .device = Device::cuda,
          .idea = "",
          .exact = true,
          .supports = supports_all,
          .scratch_bytes = no_scratch,
          .run = run};
}
ClusterSumsVariant planted_sums(bool exact, void (*run)(const ClusterSumsOp& op, Stream stream)) {
  return {.name = "planted",
          .device = Device::cuda,
          .idea = "",
          .exact = exact,
          .supports = supports_all,
          .scratch_bytes = no_scratch,
          .run = run};
}
void right(const LookupOp& op, Stream stream) { lookup_variants(Device::cuda).back()->run(op, stream); }
void right(const ClusterSumsOp& op, Stream stream) {
  cluster_sums_variants(Device::cuda).front()->run(op, stream);
}

}  // namespace

TEST_CASE("device: every variant of every op verifies as compare does", "[kernels]") {
  for (const VariantOp* op : variant_ops()) {
    REQUIRE(!op->variants(Device::cuda).empty());
    for (const VariantShape& shape : kShapes)
      for (const CaseData data : {CaseData::plain, CaseData::hard})
        for_few_schedules([&] {
          const auto problem = op->make(device_runtime(), shape, data, shape.N);
          for (const VariantInfo& variant : op->variants(Device::cuda)) {
            INFO(op->name << " " << variant.name << " at " << shape.text()
                          << (data == CaseData::hard ? " hard" : ""));
            if (!problem->supports(variant.name)) continue;
            for (int repeat = 0; repeat < 2; ++repeat) {
              problem->run(variant.name);
              CHECK(problem->wrong() == 0);
            }
          }
        });
  }
}

TEST_CASE("device: exact variants give equal results twice", "[kernels]") {
  for (const VariantOp* op : variant_ops())
    for_few_schedules([&] {
      const auto problem = op->make(device_runtime(), kShapes[0], CaseData::plain, kShapes[0].N);
      for (const VariantInfo& variant : op->variants(Device::cuda)) {
        if (!variant.exact || !problem->supports(variant.name)) continue;
        problem->run(variant.name);
        const std::vector<std::byte> output = problem->output();
        problem->run(variant.name);
        INFO(op->name << " " << variant.name);
        CHECK(problem->output() == output);
      }
    });
}

TEST_CASE("device: a comparison verifies and times every variant", "[kernels]") {
  const VariantShape shape{70, 33, 5};
  const Ceilings ceilings{.copy_gb_s = 1.0};  // without a product; warm caches spare the sweep of 256 MiB
  const ComparisonOptions options{.seconds = 0.0, .hot = true};
  for (const VariantOp* op : variant_ops())
    for_few_schedules([&] {
      require_memory_for(*op, shape, device_runtime());
      const auto variants = op->variants(Device::cuda);
      const auto results = compare_variants(*op, variants, shape, ceilings, options, device_runtime());
      REQUIRE(results.size() == variants.size());
      for (const VariantResult& result : results) {
        INFO(op->name << " " << result.variant.name);
        if (result.status == "UNSUPPORTED") continue;
        CHECK((result.status == "ok" || (op->name == "skewed_sums" && result.status == "MISTRUSTED")));
        CHECK(result.wrong == 0);
        CHECK(result.rows_checked == 2 * (op->name == "lookup" ? shape.N : shape.K));
        REQUIRE(result.timing);
        CHECK(result.timing->samples == 1);
        CHECK((result.deterministic || !result.variant.exact));
      }
    });
}

TEST_CASE("device: verification finds planted defects of a lookup variant", "[kernels]") {
  for_few_schedules([] {
    LookupCase problem(device_runtime(), {70, 33, 5}, CaseData::plain, 70);
    problem.run(planted(right));
    CHECK(problem.wrong() == 0);
    problem.run(planted([](const LookupOp& op, Stream stream) {
      right(op, stream);
      spoil(op.codes, op.codes.size() - 1, 33, stream);
    }));
    CHECK(problem.wrong() == 1);
    problem.run(planted([](const LookupOp& op, Stream stream) {
      right(op, stream);
      spoil(op.first_bad_row, 0, 0, stream);
    }));
    CHECK(problem.wrong() == 70);
  });
}

TEST_CASE("device: verification finds planted defects of a cluster sums variant", "[kernels]") {
  for (const bool exact : {true, false})
    for (const CaseData data : {CaseData::plain, CaseData::hard})
      for_few_schedules([=] {
        ClusterSumsCase problem(device_runtime(), {150, 9, 5}, data);
        problem.run(planted_sums(exact, right));
        CHECK(problem.wrong() == 0);
        problem.run(planted_sums(exact, [](const ClusterSumsOp& op, Stream stream) {
          right(op, stream);
          spoil(op.counts, 0, -1, stream);
        }));
        CHECK(problem.wrong() == 1);
        problem.run(planted_sums(exact, [](const ClusterSumsOp& op, Stream stream) {
          right(op, stream);
          spoil(op.sums, op.sums.size() - 1, std::bit_cast<int32_t>(0.375f), stream);
          spoil(op.sums, 0, -1, stream);  // NaN
        }));
        CHECK(problem.wrong() == 2);
      });
}

TEST_CASE("device: a comparison lists the kernels that a variant launches", "[kernels]") {
  for (const VariantOp* op : variant_ops()) {
    const auto results = compare_variants(*op, op->variants(Device::cuda), {70, 33, 64}, {},
                                          {.seconds = 0.0, .timed = false}, device_runtime());
    for (const VariantResult& result : results) {
      INFO(op->name << " " << result.variant.name << " " << result.status);
      if (result.status != "ok") continue;
      REQUIRE(!result.kernels.empty());
      const std::string own = fmt::format("{}_{}", op->name, result.variant.name);
      bool any = op->name != "lookup";  // the others are made of kernels that they share
      for (const LaunchedKernel& kernel : result.kernels) {
        any = any || kernel.name.starts_with(own);
        CHECK(kernel.shared_bytes >= 0);
        if (!device_runtime().device_name().starts_with("emulated")) CHECK(kernel.registers > 0);
      }
      CHECK(any);
    }
  }
}

TEST_CASE("device: logs of launches nest and end", "[kernels]") {
  const DeviceArray<float> array(10);
  const auto fill = [&] { run(FillOp{array.view(), 1.0f}, device_stream()); };
  LaunchLog outer;
  {
    LaunchLog inner;
    fill();
    fill();
    CHECK(inner.kernels().size() == 1);
  }
  CHECK(LaunchLog::current() == &outer);
  CHECK(outer.kernels().empty());
  fill();
  REQUIRE(outer.kernels().size() == 1);
  CHECK(outer.kernels()[0].name == "fill");
  synchronize();
}

}  // namespace vqlab::testing
