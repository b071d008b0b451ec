// `vqlab profile` on a device, whose clock are its events.
#include "device_testing.hpp"
#include "engine/step_profile.hpp"
#include "lab.hpp"

namespace vqlab::testing {

// k-means is in the third step, since an epoch has three.
TEST_CASE("profile: on the device ops add up and the bits are those of training alone", "[trainer]") {
  Lab lab(40);
  const Config config = parse_config(tiny_config(lab.data()), "tiny", {"train.epochs=4"});
  const TrainingData data = load_training_data(config);
  for_few_schedules([&] {
    Trainer alone(config, device_runtime(), data.training());
    for (int i = 0; i < 5; ++i) alone.step();
    const StepReport expected = alone.report();
    const StepProfile p =
        profile_step({.config = config, .first = 4, .last = 5}, device_runtime(), lab.observer);
    CHECK(p.final_step.step == 5);
    CHECK(p.final_step.loss == expected.loss);
    CHECK(p.final_step.gradient_norm == expected.gradient_norm);  // of all weights
    CHECK_FALSE(p.starts_codebook);
    REQUIRE(p.rooms.size() == 10);
    double rooms_ms = 0.0, ops_ms = 0.0, calls = 0.0;
    for (const ProfiledRoom& room : p.rooms) rooms_ms += room.ms;
    for (const ProfiledOp& op : p.ops) ops_ms += op.ms, calls += op.calls;
    CHECK(p.ops_ms == Approx(ops_ms));
    CHECK(calls > 50.0);
    const double rounding = 1e-3 * (10.0 + calls);  // events tell floats, to about a microsecond
    CHECK(p.ops_ms <= rooms_ms + rounding);
    CHECK(rooms_ms <= p.step_ms + rounding);
    CHECK(p.step_ms > 0.0);
    CHECK(p.unwatched_ms > 0.0);
  });
}

}  // namespace vqlab::testing
