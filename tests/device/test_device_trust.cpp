// The self-test on the device, and a run whose preferred kernel fails it.
#include "device_testing.hpp"
#include "engine/checkpoint.hpp"
#include "engine/lookup_case.hpp"
#include "engine/self_test.hpp"
#include "engine/trust.hpp"
#include "kernels/core/fill.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

// A shipped variant, and then one number too many.
template <int64_t kAt>
void run_and_write(const LookupOp& op, Stream stream) {
  lookup_variants(Device::cuda).back()->run(op, stream);
  const int64_t at = kAt < 0 ? op.codes.size() : kAt;
  run(FillOp{{reinterpret_cast<float*>(op.codes.data + at), {1}}, 1.0f}, stream);
}

class BrokenCase : public LookupCase {
 public:
  BrokenCase(const Runtime& runtime, void (*entry)(const LookupOp&, Stream))
      : LookupCase(runtime, {129, 66, 8}, CaseData::hard, 129),
        broken_(*lookup_variants(Device::cuda).back()) {
    broken_.run = entry;
  }
  using LookupCase::run;
  void run(std::string_view) override { run(broken_); }

 private:
  LookupVariant broken_;
};

}  // namespace

TEST_CASE("device: every kernel variant passes its self-test, and a broken one does not", "[trust]") {
  for (const VariantOp* op : variant_ops())
    for (const VariantInfo& variant : op->variants(Device::cuda)) {
      INFO(op->name << " " << variant.name);
      CHECK(self_test(*op, device_runtime(), variant.name) == "");
    }
  BrokenCase wrong(device_runtime(), run_and_write<100>), outside(device_runtime(), run_and_write<-1>);
  CHECK(self_test(wrong, "broken") == "1 of 129 rows are wrong at 129,66,8");
  CHECK(self_test(outside, "broken") == "writes outside of 'codes' at 129,66,8");
}

TEST_CASE("device: a run passes over a kernel that fails its self-test, and keeps to its choice", "[trust]") {
  const auto table = lookup_variants(Device::cuda);
  const std::string first(table[0]->name), second(table[1]->name);
  Trust trust("key", "", [&](std::string_view, std::string_view variant) {
    return Verdict{.passed = variant != first, .reason = "it hangs"};
  });
  Lab lab;
  TrainOptions options;
  options.config = parse_config(tiny_config(lab.data()), "tiny", {"device=cuda"});
  options.run = lab.run("chosen");
  options.max_steps = 2;
  options.trust = &trust;
  vqlab::train(options, lab.observer);
  CHECK(Checkpoint(options.run, "last").kernels().lookup == second);
  Trust later("key", "", [&](std::string_view, std::string_view variant) {
    return Verdict{.passed = variant != second, .reason = "it hangs"};
  });
  options.access = RunAccess::resume;
  options.max_steps = 3;
  options.trust = &later;
  CHECK_THROWS_WITH(vqlab::train(options, lab.observer),
                    Catch::Matchers::Contains("whose self-test fails here now"));
  options.new_kernels = true;
  vqlab::train(options, lab.observer);
  CHECK(Checkpoint(options.run, "last").kernels().lookup == first);
}

}  // namespace vqlab::testing
