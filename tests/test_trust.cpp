#include "engine/trust.hpp"

#include <filesystem>
#include <fstream>
#include <limits>

#include "engine/kernel_choice.hpp"
#include "engine/lookup_case.hpp"
#include "engine/self_test.hpp"
#include "kernels/codebook/score64.hpp"
#include "planted_variant.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

using Catch::Matchers::Contains;

// ---- the self-test, itself tested: planted lookups of the CPU ----

void search(const LookupOp& op, bool last_of_equals) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.latents[1];
  op.first_bad_row.data[0] = -1;
  for (int64_t n = 0; n < N; ++n) {
    double nearest = std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < K; ++k) {
      const double distance = score64(op.latents.data + n * D, op.codebook.data + k * D, D);
      if (distance > nearest || (distance == nearest && !last_of_equals)) continue;
      nearest = distance;
      op.codes.data[n] = int32_t(k);
    }
  }
}

class PlantedCase : public LookupCase {
 public:
  PlantedCase(const Runtime& runtime, const LookupVariant& variant)
      : LookupCase(runtime, {33, 65, 8}, CaseData::hard, 33), variant_(variant) {}
  using LookupCase::run;
  void run(std::string_view) override { run(variant_); }

 private:
  const LookupVariant variant_;
};

std::string verdict_on(void (*run)(const LookupOp&, Stream)) {
  const Runtime runtime("cpu", 1);
  PlantedCase problem(runtime, planted_variant<LookupOp>(run));
  return self_test(problem, "planted");
}

}  // namespace

TEST_CASE("trust: the self-test finds planted defects", "[trust]") {
  CHECK(verdict_on([](const LookupOp& op, Stream) { search(op, false); }) == "");
  CHECK_THAT(verdict_on([](const LookupOp& op, Stream) { search(op, true); }),
             Contains("rows are wrong at 33,65,8"));
  CHECK(verdict_on([](const LookupOp& op, Stream) {
          search(op, false);
          op.codes.data[17] ^= 1;
        }) == "1 of 33 rows are wrong at 33,65,8");
  CHECK(verdict_on([](const LookupOp& op, Stream) {
          search(op, false);
          op.codes.data[33] = 0;
        }) == "writes outside of 'codes' at 33,65,8");
  CHECK(verdict_on([](const LookupOp& op, Stream) {
          search(op, false);
          op.first_bad_row.data[-1] = 0;
        }) == "writes outside of 'first bad row' at 33,65,8");
  CHECK_THAT(verdict_on([](const LookupOp&, Stream) { throw Error(ErrorKind::failed, "no kernel", "none"); }),
             Contains("fails at 33,65,8") && Contains("no kernel"));
}

TEST_CASE("trust: every variant of the CPU passes", "[trust]") {
  const Runtime runtime("cpu", 1);
  for (const VariantOp* op : variant_ops())
    for (const VariantInfo& variant : op->variants(Device::cpu)) {
      INFO(op->name << " " << variant.name);
      CHECK(self_test(*op, runtime, variant.name) == "");
    }
}

// ---- the child process ----

TEST_CASE("trust: a child that hangs, dies or fails is told in one line", "[trust]") {
  const auto check = [](const char* script, double seconds, int exit_code, const std::string& words) {
    INFO(script);
    const ChildEnd end = run_child({"/bin/sh", "-c", script}, seconds);
    CHECK(end.exit_code == exit_code);
    CHECK(end.words == words);
  };
  check("echo one; echo passed", 20, 0, "passed");
  check("sleep 30", 0.2, -1, "no answer within 0.2 s");
  check("echo working; sleep 30 & sleep 30", 0.2, -1, "no answer within 0.2 s");
  check("kill -SEGV $$", 20, -1, "ended by signal 11 (Segmentation fault)");
  check("echo one; echo '3 of 33 rows are wrong' >&2; exit 7", 20, 7, "3 of 33 rows are wrong");
  check("exit 9", 20, 9, "exit code 9");
  CHECK(run_child({"/no/such/program"}, 5.0).exit_code == 127);
}

// A GPU whose memory is in use says nothing about a kernel.
TEST_CASE("trust: what could not be tested is tested again", "[trust]") {
  CHECK(verdict_of({0, "passed"}).passed);
  CHECK(verdict_of({7, "3 rows are wrong"}).lasting);
  CHECK(verdict_of({-1, "no answer within 60 s"}).lasting);
  CHECK(!verdict_of({5, "out of memory"}).lasting);
  CHECK(!verdict_of({5, "out of memory"}).passed);
  const TemporaryDirectory folder;
  int tests = 0;
  for (int run = 0; run < 2; ++run) {
    Trust trust("key", folder / "cache", [&](std::string_view, std::string_view) {
      ++tests;
      return Verdict{.reason = "out of memory", .lasting = false};
    });
    CHECK(!trust.verdict("lookup", "naive").passed);
    CHECK(!trust.verdict("lookup", "naive").passed);
  }
  CHECK(tests == 2);
}

TEST_CASE("trust: this program has a build id", "[trust]") { CHECK(build_id().size() >= 7); }

// ---- verdicts and where they are kept ----

namespace {

struct Tests {  // that fail for the named variants
  std::vector<std::string> failing;
  int count = 0;
  Trust::SelfTest test() {
    return [this](std::string_view, std::string_view variant) {
      ++count;
      const bool fails = std::find(failing.begin(), failing.end(), variant) != failing.end();
      return fails ? Verdict{.reason = "3 rows are wrong"} : Verdict{.passed = true};
    };
  }
};

}  // namespace

TEST_CASE("trust: a verdict is kept for the same GPU, driver and build", "[trust]") {
  const TemporaryDirectory folder;
  Tests tests{.failing = {"gemm"}};
  for (int run = 0; run < 2; ++run) {
    Trust trust("H100, build 1", folder / "cache/vqlab", tests.test());
    CHECK(trust.verdict("lookup", "naive").passed);
    CHECK(!trust.verdict("lookup", "gemm").passed);
    CHECK(trust.verdict("lookup", "gemm").reason == "3 rows are wrong");
    CHECK(trust.note() == "");
    CHECK(tests.count == 2);
  }
  Trust other("H100, build 2", folder / "cache/vqlab", tests.test());
  CHECK(other.verdict("lookup", "naive").passed);
  CHECK(tests.count == 3);
}

TEST_CASE("trust: a damaged or unwritable cache only costs tests", "[trust][bad-input]") {
  const TemporaryDirectory folder;
  Tests tests;
  (void)Trust("key", folder / "cache", tests.test()).verdict("lookup", "naive");
  for (const auto& entry : std::filesystem::directory_iterator(folder / "cache"))
    std::ofstream(entry.path()) << "{\"key\": \"key\", \"verdicts\": {\"lookup naive\": 7";
  Trust damaged("key", folder / "cache", tests.test());
  CHECK_THAT(damaged.note(), Contains("taken anew"));
  CHECK(damaged.verdict("lookup", "naive").passed);
  CHECK(tests.count == 2);
  std::ofstream(folder / "file") << "no folder";
  Trust unwritable("key", folder / "file", tests.test());
  CHECK(unwritable.verdict("lookup", "naive").passed);
  CHECK_THAT(unwritable.note(), Contains("not kept"));
  CHECK(unwritable.verdict("lookup", "naive").passed);
  CHECK(tests.count == 3);
}

// ---- the choice ----

namespace {

// An Error of this kind that says `what` and whose hint says `hint`.
template <class Action>
void check_error(ErrorKind kind, const std::string& what, const std::string& hint, const Action& action,
                 const std::string& where = "") {
  try {
    action();
  } catch (const Error& error) {
    CHECK(int(error.kind()) == int(kind));
    CHECK_THAT(error.what(), Contains(what));
    CHECK_THAT(error.hint(), Contains(hint));
    if (!where.empty()) CHECK(error.where() == where);
    return;
  }
  FAIL("nothing was thrown that says " << what);
}

}  // namespace

TEST_CASE("trust: the first variant of the table that passes is chosen", "[trust]") {
  constexpr VariantShape kShape{1024, 64, 8};
  std::vector<std::string> warnings;
  const auto choose = [&](const KernelsConfig& wanted, std::vector<std::string> failing) {
    Tests tests{.failing = std::move(failing)};
    Trust trust("key", "", tests.test());
    warnings.clear();
    return choose_kernels(wanted, Device::cpu, kShape, &trust,
                          [&](const std::string& line) { warnings.push_back(line); });
  };
  CHECK(choose({}, {}).lookup->name == "fused");
  CHECK(warnings.empty());
  const std::string next(lookup_variants(Device::cpu)[1]->name);
  CHECK(choose({}, {"fused"}).lookup->name == next);
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0] ==
        "not used here, since the self-test fails: lookup fused: 3 rows are wrong. In its place: " + next);
  CHECK(choose({.lookup = "fused"}, {"fused"}).lookup->name == "fused");
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0],
             Contains("lookup fused is used as the configuration says") && Contains("3 rows are wrong"));
  check_error(ErrorKind::device, "no lookup kernel can be trusted", "--device cpu", [&] {
    std::vector<std::string> all;
    for (const LookupVariant* variant : lookup_variants(Device::cpu)) all.emplace_back(variant->name);
    (void)choose({}, all);
  });
  check_error(
      ErrorKind::usage, "unknown lookup variant 'fuse'", "did you mean 'fused'?",
      [&] { (void)choose({.lookup = "fuse"}, {}); }, "kernels.lookup");
}

TEST_CASE("trust: a run goes on with the kernels it had, or says why not", "[trust][bad-input]") {
  Tests tests{.failing = {"fused"}};
  Trust trust("key", "", tests.test());
  const RunKernels used{"cpu", "fused", std::string(cluster_sums_variants(Device::cpu)[0]->name)};
  CHECK(RunKernels::from_json(used.to_json()).lookup == "fused");
  CHECK(find_kernels(used, Device::cpu, nullptr).lookup->name == "fused");
  check_error(ErrorKind::device, "the run uses lookup fused, whose self-test fails here now", "--new-kernels",
              [&] { (void)find_kernels(used, Device::cpu, &trust); });
  check_error(ErrorKind::device, "the run uses lookup fused, whose self-test fails here now", "--new-kernels",
              [&] { (void)find_kernels(used, Device::cpu, &trust); });
  check_error(ErrorKind::checkpoint, "which this program does not have", "--new-kernels", [&] {
    (void)find_kernels({"cpu", "gone", used.cluster_sums}, Device::cpu, nullptr);
  });
}

}  // namespace vqlab::testing
