// Images that stay on the device: how a step finds its batch among them, and when they may.
#include <algorithm>
#include <set>

#include "engine/trainer.hpp"
#include "expect_error.hpp"
#include "kernels/nn/begin_step.hpp"
#include "nn_buffers.hpp"
#include "synthetic.hpp"

namespace vqlab::testing {
namespace {

// A plan of 4 steps in which each has numbers of its own.
std::vector<StepState> plan_of_four(int64_t first) {
  std::vector<StepState> plan(4);
  for (int64_t step = first; step < first + 4; ++step)
    plan[size_t(step % 4)] = {.step = step,
                              .learning_rate = 0.5f / float(step + 1),
                              .epoch = step / 5,
                              .first_index = step % 5 * 3,
                              .mix = 1.0f / float(step + 2)};
  return plan;
}

}  // namespace

TEST_CASE("begin step: scalars come from the plan, the batch from the order of the epoch", "[unit]") {
  std::vector<StepState> plan = plan_of_four(0);
  std::vector<int32_t> set_labels(17), places(3), labels(3);
  for (size_t i = 0; i < set_labels.size(); ++i) set_labels[i] = int32_t(100 + i);
  StepState state{.step = -1};
  const BeginStepOp op{.state = {&state, {1}},
                       .places = {places.data(), {3}},
                       .labels = {labels.data(), {3}},
                       .plan = {plan.data(), {4}},
                       .set_labels = {set_labels.data(), {17}},
                       .images = 17,
                       .seed = 5};
  std::set<int32_t> seen;
  for (int64_t step = 0; step < 10; ++step) {
    if (step % 4 == 0) {
      const std::vector<StepState> next = plan_of_four(step);
      std::copy(next.begin(), next.end(), plan.begin());
    }
    run(op, Stream{});
    CHECK(state.step == step);
    CHECK(state.learning_rate == 0.5f / float(step + 1));
    CHECK(state.mix == 1.0f / float(step + 2));
    if (step % 5 == 0) seen.clear();
    const Permutation order({.seed = 5, .step = uint32_t(step / 5), .use = RandomUse::order}, 17);
    for (size_t b = 0; b < 3; ++b) {
      CHECK(places[b] == int32_t(order(uint64_t(step % 5 * 3) + b)));
      CHECK(labels[b] == 100 + places[b]);
      CHECK(seen.insert(places[b]).second);  // once an epoch
    }
  }
  BeginStepOp unlabelled = op;
  unlabelled.set_labels = {};
  run(unlabelled, Stream{});
  CHECK(labels == std::vector<int32_t>(3, -1));
}

TEST_CASE("begin step: wrong operands are rejected", "[unit][bad-input]") {
  std::vector<StepState> plan(4);
  std::vector<int32_t> set_labels(17), places(3), labels(3);
  StepState state;
  const BeginStepOp op{.state = {&state, {1}},
                       .places = {places.data(), {3}},
                       .labels = {labels.data(), {3}},
                       .plan = {plan.data(), {4}},
                       .set_labels = {set_labels.data(), {17}},
                       .images = 17};
  op.check();
  const auto reject = [&](auto spoil) {
    BeginStepOp bad = op;
    spoil(bad);
    REQUIRE_THROWS_AS(run(bad, Stream{}), Error);
  };
  reject([](auto& bad) { bad.state = {}; });
  reject([](auto& bad) { bad.plan = {}; });
  reject([](auto& bad) { bad.places = {}; });  // labels of what?
  reject([](auto& bad) { bad.labels.dim[0] = 2; });
  reject([](auto& bad) { bad.set_labels.dim[0] = 16; });
  reject([](auto& bad) { bad.images = 2; });
  reject([](auto& bad) { bad.images = int64_t(1) << 31; });
}

TEST_CASE("nn: image input of a set takes its images at the given places", "[unit]") {
  std::vector<uint8_t> bytes(size_t(6 * 5 * 7 * 3), 0);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(random_bits({}, i).v[0]);
  const std::vector<int32_t> places = {4, 0, 5, 4};
  std::vector<uint8_t> batch;
  for (const int32_t place : places)
    batch.insert(batch.end(), bytes.begin() + place * 105, bytes.begin() + (place + 1) * 105);
  StepState state{.epoch = 3, .first_index = 50, .mix = 0.3f};
  const int64_t size = 4 * 8 * 8 * 3;
  Buffer expected(size), actual(size);
  for (const bool mixup : {false, true}) {
    ImageInputOp op{.output = expected.view({4, 8, 8, 3}),
                    .images = {batch.data(), {4, 5, 7, 3}},
                    .places = {},
                    .flip = true,
                    .shift = 2,
                    .mixup = mixup,
                    .seed = 7,
                    .state = {&state, {1}}};
    run(op, Stream{});
    op.output = actual.view({4, 8, 8, 3});
    op.images = {bytes.data(), {6, 5, 7, 3}};
    op.places = {places.data(), {4}};
    run(op, Stream{});
    actual.check_guards();
    CHECK(same_bits(actual.values(), expected.values()));
  }
}

TEST_CASE("resident set: the CPU reads a range where it is, and copies only scattered places", "[unit]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const ResidentSet part(runtime, {&set, 10, 30});
  CHECK(part.images().data == set.pixels.data() + 10 * 64);
  CHECK(part.images().shape() == "(20, 8, 8, 1)");
  CHECK(part.labels().data == set.labels.data() + 10);
  const std::vector<int64_t> only = {39, 3, 15};
  const ResidentSet some(runtime, {&set, 0, 40, &only});
  CHECK(some.images().shape() == "(3, 8, 8, 1)");
  for (size_t i = 0; i < 3; ++i) {
    const auto* image = some.images().data + i * 64;
    CHECK(std::equal(image, image + 64, set.pixels.begin() + only[i] * 64));
    CHECK(some.labels().data[i] == set.labels[size_t(only[i])]);
  }
  ImageSet unlabelled = set;
  unlabelled.labels.clear();
  CHECK(!ResidentSet(runtime, {&unlabelled, 0, 40}).labels());
}

// 40 images of 64 bytes and a label: 2720 bytes.
TEST_CASE("resident set: it stays on a GPU up to a quarter of what is free", "[unit]") {
  ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const ImageRange all{&set, 0, 40}, half{&set, 20, 40};
  CHECK(choose_residency(all, Device::cuda, 4 * 2720) == Residency::resident);
  CHECK(choose_residency(all, Device::cuda, 4 * 2720 - 1) == Residency::streamed);
  CHECK(choose_residency(half, Device::cuda, 2 * 2720) == Residency::resident);
  CHECK(choose_residency(all, Device::cuda, 0) == Residency::streamed);
  CHECK(choose_residency(all, Device::cpu, 0) == Residency::resident);
  CHECK(describe(Residency::resident, all, Device::cuda, 10880) ==
        "images: 2.7 KiB stay on the GPU, at most a quarter of the 10.6 KiB that the model leaves free");
  CHECK(
      describe(Residency::streamed, all, Device::cuda, 1024) ==
      "images: 2.7 KiB come from the host batch by batch, more than a quarter of the 1.0 KiB that the model "
      "leaves free");
  CHECK(describe(Residency::resident, all, Device::cpu, 0) == "images: 2.7 KiB, read where they are");
  set.count = int64_t(1) << 31;  // places are of 32 bits
  set.height = set.width = set.channels = 0;
  set.labels.clear();
  CHECK(choose_residency({&set, 0, set.count}, Device::cuda, int64_t(1) << 60) == Residency::streamed);
}

// Over the ends of epochs, which drop 5 images, and of a plan.
TEST_CASE("trainer: resident and streamed images give equal bits", "[unit]") {
  const Runtime runtime("cpu", 2);
  const ImageSet set = synthetic_images(29, 8, 8, 1, 1);
  const std::vector<int64_t> only = {1, 2, 3, 5, 8, 13, 21, 27, 28};
  const std::vector<std::string> labelled = {"loss.classifier_weight=1", "classifier.classes=10",
                                             "data.mixup=0.4"};
  for (const auto& [range, overrides] :
       std::vector<std::pair<ImageRange, std::vector<std::string>>>{{{&set, 0, 29}, {}},
                                                                    {{&set, 0, 29}, labelled},
                                                                    {{&set, 3, 28}, labelled},
                                                                    {{&set, 0, 29, &only}, labelled}}) {
    Config config = parse_config(tiny_config("d"), "tiny", overrides);
    config.data.flip = true;
    config.data.shift = 1;
    std::vector<std::vector<float>> weights, losses;
    for (const Residency residency : {Residency::resident, Residency::streamed}) {
      Trainer trainer(config, runtime, range, residency);
      for (int64_t i = 0; i < kPlannedSteps + 4; ++i) trainer.step();
      weights.push_back(to_host(View<const float>(trainer.model().parameters().weights()), runtime));
      losses.emplace_back();
      for (const StepMetrics& m : trainer.take_metrics()) {
        losses.back().push_back(m.reconstruction);
        losses.back().push_back(m.classification);
      }
    }
    CHECK(losses[0].size() == 2 * kMetricsRing);
    CHECK(losses[1] == losses[0]);
    CHECK(weights[1] == weights[0]);
  }
}

}  // namespace vqlab::testing
