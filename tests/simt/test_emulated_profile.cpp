// Profiling on the emulated device: its events, and exactly the steps that another profiler is to see.
#include "device.hpp"
#include "device_testing.hpp"
#include "engine/comparison.hpp"
#include "engine/step_profile.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

StepReport trained_alone(const Config& config, int steps, uint64_t* operations_of_last_two) {
  const TrainingData data = load_training_data(config);
  Trainer trainer(config, device_runtime(), data.training());
  const auto done = [] {
    synchronize();
    device_runtime().synchronize(device_runtime().copy());
    return simt::stats().operations;
  };
  for (int i = 0; i < steps - 2; ++i) trainer.step();
  const uint64_t before = done();
  for (int i = 0; i < 2; ++i) trainer.step();
  *operations_of_last_two = done() - before;
  return trainer.report();
}

}  // namespace

// k-means is in the third step, since an epoch has three.
TEST_CASE("profile: another profiler sees exactly the steps asked for", "[emulated]") {
  Lab lab(40);
  const Config config = parse_config(tiny_config(lab.data()), "tiny", {"train.epochs=4"});
  for_few_schedules([&] {
    uint64_t operations = 0;
    const StepReport alone = trained_alone(config, 6, &operations);
    const simt::Profiled before = simt::profiled();
    const StepProfile p = profile_step({.config = config, .first = 5, .last = 6, .capture = true},
                                       device_runtime(), lab.observer);
    CHECK(simt::profiled().starts == before.starts + 1);
    CHECK(simt::profiled().stops == before.stops + 1);
    CHECK(simt::profiled().operations == before.operations + operations);
    CHECK(operations > 100);
    CHECK(p.final_step.loss == alone.loss);
    CHECK(p.ops.empty());
  });
}

TEST_CASE("profile: the captured steps may be graphs", "[emulated][streams]") {
  Lab lab(40);
  const Config config = parse_config(tiny_config(lab.data()), "tiny", {"train.epochs=4"});
  for_few_schedules([&] {
    const uint64_t starts = simt::profiled().starts;
    const StepProfile p =
        profile_step({.config = config, .first = 8, .last = 9, .capture = true, .graph = true},
                     device_runtime(), lab.observer);
    CHECK(simt::captured_graphs().size() == 1);
    CHECK(simt::profiled().starts == starts + 1);
    CHECK(p.final_step.step == 9);
  });
}

TEST_CASE("compare: another profiler sees one run of each variant at the shape", "[emulated]") {
  const VariantOp& op = find_variant_op("cluster_sums");
  const VariantInfo variant = op.variants(Device::cuda).front();
  const VariantShape shape{300, 7, 5};
  simt::reset({});
  const auto plain = op.make(device_runtime(), shape, CaseData::plain, 300);
  synchronize();
  const uint64_t before_run = simt::stats().operations;
  plain->run(variant.name);
  synchronize();
  const uint64_t of_a_run = simt::stats().operations - before_run;
  const simt::Profiled before = simt::profiled();
  const auto results =
      compare_variants(op, {variant}, shape, Ceilings(), {.seconds = 0.0, .timed = false}, device_runtime());
  CHECK(results[0].status == "ok");
  CHECK(simt::profiled().starts == before.starts + 1);
  CHECK(simt::profiled().operations == before.operations + of_a_run);
  CHECK(of_a_run > 0);
}

}  // namespace vqlab::testing
