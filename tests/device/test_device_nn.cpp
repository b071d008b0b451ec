// The network's ops on the device, against their CPU implementations, bit for bit.
#include "device_testing.hpp"
#include "kernels/core/copy.hpp"
#include "kernels/core/fill.hpp"
#include "kernels/nn/begin_step.hpp"
#include "kernels/nn/image_input.hpp"
#include "kernels/nn/losses.hpp"
#include "kernels/nn/optimizer.hpp"
#include "kernels/nn/pointwise.hpp"
#include "kernels/nn/step_metrics.hpp"
#include "on_both.hpp"

namespace vqlab::testing {
namespace {

std::vector<uint8_t> random_bytes(int64_t size) {
  std::vector<uint8_t> bytes(size_t(size), 0);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(random_bits({}, i).v[0]);
  return bytes;
}

std::vector<int32_t> set_labels_of(int64_t images) {
  std::vector<int32_t> labels(size_t(images), 0);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = int32_t(i * 3 % 11);
  return labels;
}

std::vector<double> numbers(const OptimizerState& s) {
  return {double(s.updates),   double(s.skipped), double(s.skipped_in_a_row),
          double(s.halted_at), s.beta1_power,     s.beta2_power};
}

std::vector<double> numbers(const StepMetrics& m) {
  const CodebookHealth& h = m.health;
  return {double(m.step),
          m.learning_rate,
          m.reconstruction,
          m.error,
          m.classification,
          m.squared_norm,
          double(m.poisoned),
          m.distance,
          double(m.first_bad_row),
          double(m.replaced),
          double(h.used),
          double(h.dead),
          h.perplexity,
          h.mean_age,
          h.mean_norm,
          h.drift};
}

}  // namespace

TEST_CASE("device: elementwise ops have the bits of the CPU at any size and alignment", "[kernels]") {
  for (const int64_t size : {0, 1, 3, 4, 255, 1023, 1030, 4099})
    for (const int64_t offset : {0, 1, 4})
      require_same_on_both(text({size, offset}), [=](auto place) {
        // With offset 4 all are aligned to 16 bytes; `b` and `sum` then are as well, with 1 none is.
        const auto a = awkward_floats(size, 1), b = awkward_floats(size, 2);
        auto left = place.array(a, offset), right = place.array(b, offset == 1 ? 2 : 0);
        auto copied = place.array(poison(size), offset), filled = place.array(poison(size), offset);
        auto rectified = place.array(poison(size), offset), sum = place.array(poison(size), offset);
        auto d_input = place.array(poison(size), offset), masked = place.array(poison(size), offset);
        auto here = place.array(a, offset), there = place.array(b, offset == 1 ? 2 : 0);
        const Stream stream = place.stream();
        run(CopyOp{copied.view(), left.view()}, stream);
        run(FillOp{filled.view(), -0.0f}, stream);
        run(ReluOp{rectified.view(), left.view()}, stream);
        run(ReluBackwardOp{d_input.view(), right.view(), rectified.view()}, stream);
        run(AddOp{sum.view(), left.view(), right.view()}, stream);
        run(AddOp{masked.view(), left.view(), right.view(), rectified.view()}, stream);
        run(SwapOp{here.view(), there.view()}, stream);
        return std::tuple(copied.download(), filled.download(), rectified.download(), d_input.download(),
                          sum.download(), masked.download(), here.download(), there.download());
      });
}

TEST_CASE("device: elementwise ops may write over their operands", "[kernels]") {
  for (const int64_t offset : {0, 1})
    require_same_on_both(text({offset}), [=](auto place) {
      const int64_t size = 2051;
      const auto a = awkward_floats(size, 1), b = awkward_floats(size, 2);
      auto x = place.array(a, offset), y = place.array(a, offset), z = place.array(b, offset),
           left = place.array(a, offset), right = place.array(b, offset);
      const Stream stream = place.stream();
      run(ReluOp{x.view(), x.view()}, stream);
      run(ReluBackwardOp{z.view(), z.view(), x.view()}, stream);
      run(AddOp{left.view(), left.view(), y.view()}, stream);
      run(AddOp{right.view(), y.view(), right.view()}, stream);
      return std::tuple(x.download(), z.download(), left.download(), right.download());
    });
}

TEST_CASE("device: elementwise kernels loop when the grid does not cover the elements", "[kernels]") {
  const int64_t size = 4096 * 256 + 300;  // the largest grid of single floats, and a part of the next one
  std::vector<float> values(size_t(size), 0.0f);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i);
  const DeviceArray<float> from(values, 1), to(size, 1);
  run(CopyOp{to.view(), from.view()}, device_stream());
  require_same(to.download(), values, "copy");
}

TEST_CASE("device: image input equals the CPU, and extra channels are 0", "[kernels]") {
  struct Case {
    int64_t B, H, W, C, OH, OW, OC;
    bool flip;
    int64_t shift;
    float mix = 1.0f;
  };
  for (const Case& c : std::vector<Case>{{1, 1, 1, 1, 1, 1, 1, false, 0},
                                         {3, 5, 7, 3, 5, 7, 3, false, 0},
                                         {3, 5, 7, 3, 8, 9, 4, true, 4},
                                         {9, 5, 7, 1, 8, 8, 1, true, 0},
                                         {9, 28, 28, 1, 28, 28, 4, true, 2},
                                         {2, 36, 40, 3, 36, 40, 4, true, 3},
                                         {2, 5, 7, 5, 6, 8, 8, false, 2},
                                         {2, 5, 7, 3, 6, 8, 5, true, 2},
                                         {5, 5, 7, 3, 6, 8, 4, false, 0, 0.25f},
                                         {9, 5, 7, 3, 8, 9, 3, true, 2, 0.3f},
                                         {4, 5, 7, 1, 5, 7, 4, true, 0, 0.0f}}) {
    const int64_t outputs = c.B * c.OH * c.OW;
    const auto bytes = random_bytes(c.B * c.H * c.W * c.C);
    const StepState state{.step = 4, .learning_rate = 0.1f, .epoch = 3, .first_index = 1000, .mix = c.mix};
    std::vector<int32_t> places;  // as if the batch were a set
    for (int64_t b = 0; b < c.B; ++b) places.push_back(int32_t((b * b + 2) % c.B));
    bool of_set = false;
    const auto convert = [&](auto place, int64_t channels, int64_t offset) {
      auto output = place.array(poison(outputs * channels), offset);
      auto images = place.array(bytes, offset);
      auto chosen = place.array(places, offset);
      auto states = place.array(std::vector<StepState>{state});
      const bool augmented = c.flip || c.shift > 0 || c.mix < 1.0f;
      run(ImageInputOp{.output = output.view({c.B, c.OH, c.OW, channels}),
                       .images = images.view({c.B, c.H, c.W, c.C}),
                       .places = of_set ? View<const int32_t>(chosen.view()) : View<const int32_t>(),
                       .flip = c.flip,
                       .shift = c.shift,
                       .mixup = c.mix < 1.0f,
                       .seed = 7,
                       .state = augmented ? View<const StepState>(states.view()) : View<const StepState>()},
          place.stream());
      return output.download();
    };
    for (const bool with_places : {false, true}) {
      of_set = with_places;
      const std::vector<float> unpadded = convert(OnCpu{}, c.C, 0);
      std::vector<float> expected;
      for (int64_t i = 0; i < outputs * c.OC; ++i)
        expected.push_back(i % c.OC < c.C ? unpadded[size_t(i / c.OC * c.C + i % c.OC)] : 0.0f);
      for_each_schedule([&] {
        for (const int64_t offset : {0, 1})
          require_same(convert(OnDevice{}, c.OC, offset), expected,
                       text({c.B, c.H, c.W, c.C, c.OH, c.OW, c.OC, c.flip, c.shift, of_set}));
      });
    }
  }
}

TEST_CASE("device: the start of a step equals the CPU's", "[kernels]") {
  struct Case {
    int64_t B, images;  // B 0: no batch
    bool labels, set_labels;
  };
  for (const Case& c : std::vector<Case>{{0, 0, false, false},
                                         {1, 1, true, true},
                                         {3, 17, false, true},
                                         {128, 55000, true, true},
                                         {128, 55000, true, false},
                                         {1300, 1300, true, true}})
    require_same_on_both(text({c.B, c.images, c.labels, c.set_labels}), [&](auto place) {
      std::vector<StepState> steps;  // 4 to 6, at 1, 2, 0
      for (const int64_t step : {6, 4, 5})
        steps.push_back({.step = step,
                         .learning_rate = float(step),
                         .epoch = step,
                         .first_index = c.images > 2 * c.B ? c.B : 0,
                         .mix = 1.0f / float(step)});
      auto state = place.array(std::vector<StepState>{{.step = 3}});
      auto plan = place.array(steps);
      auto set_labels = place.array(set_labels_of(c.images));
      auto places = place.array(std::vector<int32_t>(size_t(c.B), -5));
      auto labels = place.array(std::vector<int32_t>(size_t(c.B), -5));
      const View<int32_t> absent;
      for (int i = 0; i < 3; ++i)
        run(BeginStepOp{.state = state.view(),
                        .places = c.B > 0 ? places.view() : absent,
                        .labels = c.labels ? labels.view() : absent,
                        .plan = plan.view(),
                        .set_labels =
                            c.set_labels ? View<const int32_t>(set_labels.view()) : View<const int32_t>(),
                        .images = c.images,
                        .seed = 9},
            place.stream());
      const StepState now = state.download()[0];
      CHECK(now.step == 6);
      return std::tuple(std::vector<double>{double(now.step), now.learning_rate, double(now.epoch),
                                            double(now.first_index), now.mix},
                        places.download(), labels.download());
    });
}

namespace {

struct LossCase {
  int64_t B, H, W, channels, C, height, width;
  ReconstructionKind kind;
  float scale;
  bool gradient;
  bool awkward;  // NaN and infinity in the pictures
};

// Copies `values` (..., channels) to (..., C), the extra channels `filler`.
std::vector<float> pad_channels(const std::vector<float>& values, int64_t channels, int64_t C, float filler) {
  std::vector<float> padded(values.size() / size_t(channels) * size_t(C), filler);
  for (size_t i = 0; i < values.size(); ++i)
    padded[i / size_t(channels) * size_t(C) + i % size_t(channels)] = values[i];
  return padded;
}

// Loss, error, squared errors, gradient and block sums.
using LossResult = std::tuple<std::vector<float>, std::vector<float>, std::vector<float>, std::vector<float>,
                              std::vector<float>>;

// With C channels in memory, those beyond c.channels full of NaN.
LossResult loss_of(auto place, const LossCase& c, int64_t C, int64_t offset) {
  const int64_t pixels = c.B * c.H * c.W, terms = pixels * c.channels;
  const auto picture = [&](uint64_t seed) {
    auto values = c.awkward ? awkward_floats(terms, seed) : normal_floats(terms, seed);
    for (size_t i = 5; i < values.size(); i += 7) values[i] = 0.25f;  // where both are equal
    return place.array(pad_channels(values, c.channels, C, kNan), offset);
  };
  auto reconstruction = picture(1), target = picture(2);
  auto gradient = place.array(poison(pixels * C), offset);
  auto loss = place.array(poison(1)), error = place.array(poison(1));
  auto squared_error = place.array(poison(c.B), offset);
  auto block_sums = place.array(poison(sum_blocks(terms)), offset);
  run(ReconstructionLossOp{c.gradient ? gradient.view({c.B, c.H, c.W, C}) : View<float>(), loss.view(),
                           error.view(), squared_error.view(), reconstruction.view({c.B, c.H, c.W, C}),
                           target.view({c.B, c.H, c.W, C}), c.height, c.width, c.channels, c.kind, c.scale,
                           block_sums.view()},
      place.stream());
  return {loss.download(), error.download(), squared_error.download(), gradient.download(),
          block_sums.download()};
}

}  // namespace

TEST_CASE("device: reconstruction losses equal the CPU, with padded channels and masks", "[kernels]") {
  using enum ReconstructionKind;
  for (const LossCase& c : std::vector<LossCase>{{1, 1, 1, 1, 1, 1, 1, squared, 1.0f, true, false},
                                                 {3, 5, 7, 3, 3, 5, 7, squared, 1.0f, true, true},
                                                 {3, 5, 7, 3, 4, 5, 7, absolute, 1.0f, true, true},
                                                 {2, 8, 8, 3, 4, 5, 7, squared, 12.5f, true, true},
                                                 {2, 8, 8, 3, 5, 1, 8, absolute, 12.5f, true, false},
                                                 {5, 32, 32, 1, 1, 28, 28, squared, 0.3f, true, false},
                                                 {5, 32, 32, 1, 4, 28, 28, absolute, 0.3f, false, false},
                                                 {2, 64, 64, 1, 1, 64, 64, absolute, 2.0f, true, false},
                                                 {2, 64, 64, 1, 1, 64, 61, squared, 2.0f, true, true},
                                                 {3, 64, 64, 2, 4, 64, 64, squared, 2.0f, true, false},
                                                 {3, 40, 36, 3, 4, 33, 35, squared, 1.0f, false, false},
                                                 {3, 40, 36, 3, 4, 40, 36, squared, 1.0f, true, false},
                                                 {2, 3, 3, 130, 132, 3, 2, squared, 1.0f, true, false}}) {
    const std::string what = text({c.B, c.H, c.W, c.channels, c.C, c.height, c.width});
    auto expected = loss_of(OnCpu{}, c, c.channels, 0);
    if (c.gradient)
      std::get<3>(expected) = pad_channels(std::get<3>(expected), c.channels, c.C, 0.0f);
    else
      std::get<3>(expected) = poison(c.B * c.H * c.W * c.C);
    for_each_schedule([&] {
      for (const int64_t offset : {0, 1}) {
        const auto actual = loss_of(OnDevice{}, c, c.C, offset);
        require_same(std::get<0>(actual), std::get<0>(expected), what + ": loss");
        require_same(std::get<1>(actual), std::get<1>(expected), what + ": error");
        require_same(std::get<2>(actual), std::get<2>(expected), what + ": squared_error");
        require_same(std::get<3>(actual), std::get<3>(expected), what + ": gradient");
        require_same(std::get<4>(actual), std::get<4>(expected), what + ": block_sums");
      }
    });
  }
}

namespace {

// The norm and the block sums.
auto norm_of(auto place, const std::vector<float>& values) {
  auto gradients = place.array(values, 1), norm = place.array(poison(1), 1),
       block_sums = place.array(poison(sum_blocks(int64_t(values.size()))), 1);
  run(GradientNormOp{norm.view(), gradients.view(), block_sums.view()}, place.stream());
  return std::tuple(norm.download(), block_sums.download());
}

}  // namespace

TEST_CASE("device: the gradient norm adds in the stated order", "[kernels]") {
  for (const int64_t size : {0, 1, 31, 255, 257, 4095, 4096, 4097, 16385}) {
    require_same_on_both(text({size}), [=](auto place) { return norm_of(place, normal_floats(size, 1)); });
    std::vector<float> values = normal_floats(size, 1);
    if (size > 0) values[size_t(size) / 2] = size % 2 ? kNan : kInf;
    require_same_on_both(text({size}), [&](auto place) { return norm_of(place, values); });
  }
}

TEST_CASE("device: the block that finishes a sum takes more block sums than it has lanes", "[kernels]") {
  for (const int64_t blocks : {256, 257, 600}) {
    const auto values = normal_floats(blocks * kSumBlock - 7, 1);
    require_same(std::get<0>(norm_of(OnDevice{}, values)), std::get<0>(norm_of(OnCpu{}, values)), "norm");
  }
}

TEST_CASE("device: the poison gate keeps the state of the optimiser as on the CPU", "[kernels]") {
  struct Step {
    float loss, squared_norm;
    int32_t first_bad_row;
  };
  const float largest = std::numeric_limits<float>::max();
  const std::vector<Step> steps = {{1.0f, 2.0f, -1},    {kNan, 2.0f, -1}, {1.0f, kInf, -1}, {0.0f, 0.0f, -1},
                                   {-kInf, 2.0f, -1},   {1.0f, 2.0f, 0},  {1.0f, 2.0f, -1}, {1.0f, 2.0f, 77},
                                   {largest, 2.0f, -1}, {1.0f, kNan, -1}, {kInf, kInf, 3},  {1.0f, kNan, 5},
                                   {1.0f, 2.0f, -1}};
  for (const bool quantizer : {true, false})
    require_same_on_both(text({quantizer}), [&](auto place) {
      auto poisoned = place.array(std::vector<int32_t>{-7}, 1);
      auto optimizer = place.array(std::vector<OptimizerState>(1));
      std::vector<int32_t> gates;
      std::vector<double> states;
      for (size_t i = 0; i < steps.size(); ++i) {
        auto loss = place.array(std::vector<float>{steps[i].loss}, 1);
        auto norm = place.array(std::vector<float>{steps[i].squared_norm}, 1);
        auto bad_row = place.array(std::vector<int32_t>{steps[i].first_bad_row}, 1);
        auto state = place.array(std::vector<StepState>{{.step = int64_t(i)}});
        run(PoisonGateOp{poisoned.view(), optimizer.view(), loss.view(), norm.view(),
                         quantizer ? View<const int32_t>(bad_row.view()) : View<const int32_t>(),
                         state.view(), 0.9, 0.999, 3},
            place.stream());
        gates.push_back(poisoned.download()[0]);
        for (const double number : numbers(optimizer.download()[0])) states.push_back(number);
      }
      return std::tuple(gates, states);
    });
}

TEST_CASE("device: Adam has the bits of the CPU over several steps", "[kernels]") {
  for (const int64_t size : {1, 3, 257, 1030, 4099})
    for (const int64_t offset : {0, 1})
      for (const float clip : {0.0f, 1.0f, 1e6f})
        require_same_on_both(text({size, offset, int64_t(clip)}), [=](auto place) {
          const bool decays = clip > 1.0f;
          std::vector<uint8_t> groups(size_t(decay_groups(size)), 1);
          for (size_t i = 1; i < groups.size(); i += 3) groups[i] = 0;
          auto decayed = place.array(groups, offset);
          auto weights = place.array(normal_floats(size, 1), offset);
          auto moment1 = place.array(std::vector<float>(size_t(size), 0.0f), offset);
          auto moment2 = place.array(std::vector<float>(size_t(size), 0.0f), offset);
          OptimizerState counted;
          for (int step = 0; step < 4; ++step) {
            std::vector<float> values = normal_floats(size, uint64_t(100 + step));
            if (step == 2) values = awkward_floats(size, 9);
            auto gradients = place.array(values, offset);
            auto norm = place.array(std::vector<float>{float(size) * 0.9f}, 1);
            // The third step is poisoned, or its NaN would stay.
            auto poisoned = place.array(std::vector<int32_t>{step == 2 ? 1 : 0}, 1);
            auto state = place.array(std::vector<StepState>{{.step = step, .learning_rate = 0.01f}});
            advance_optimizer(counted, step == 2, step, 0.9, 0.999, 10);
            auto optimizer = place.array(std::vector<OptimizerState>{counted});
            run(AdamOp{weights.view(), moment1.view(), moment2.view(), gradients.view(), state.view(),
                       optimizer.view(), norm.view(), poisoned.view(), 0.9f, 0.999f, 1e-8f, clip,
                       decays ? 0.25f : 0.0f,
                       decays ? View<const uint8_t>(decayed.view()) : View<const uint8_t>()},
                place.stream());
            place.wait();
          }
          return std::tuple(weights.download(), moment1.download(), moment2.download());
        });
}

TEST_CASE("device: Adam with gradients that are not finite, and halted, does as on the CPU", "[kernels]") {
  for (const int32_t halted : {0, 1})
    require_same_on_both(text({halted}), [=](auto place) {
      const int64_t size = 1001;
      auto weights = place.array(awkward_floats(size, 1)), moment1 = place.array(awkward_floats(size, 2)),
           moment2 = place.array(awkward_floats(size, 3)), gradients = place.array(awkward_floats(size, 4)),
           norm = place.array(std::vector<float>{kNan});
      auto poisoned = place.array(std::vector<int32_t>{halted});
      auto state = place.array(std::vector<StepState>{{.step = 1, .learning_rate = 0.01f}});
      auto optimizer = place.array(std::vector<OptimizerState>{{.updates = 1, .beta1_power = 0.9}});
      run(AdamOp{weights.view(), moment1.view(), moment2.view(), gradients.view(), state.view(),
                 optimizer.view(), norm.view(), poisoned.view(), 0.9f, 0.999f, 1e-8f, 1.0f, 0.0f,
                 View<const uint8_t>()},
          place.stream());
      return std::tuple(weights.download(), moment1.download(), moment2.download());
    });
}

TEST_CASE("device: averages of the weights have the bits of the CPU", "[kernels]") {
  for (const int64_t size : {1, 3, 257, 1030, 4099})
    for (const int64_t offset : {0, 1})
      for (const int32_t halted : {0, 1})
        require_same_on_both(text({size, offset, halted}), [=](auto place) {
          auto averages = place.array(awkward_floats(size, 1), offset);
          auto weights = place.array(awkward_floats(size, 2), offset);
          auto poisoned = place.array(std::vector<int32_t>{halted}, 1);
          auto optimizer = place.array(std::vector<OptimizerState>{{.updates = size}});
          run(AverageWeightsOp{averages.view(), weights.view(), optimizer.view(), poisoned.view(), 0.9f},
              place.stream());
          return std::tuple(averages.download());
        });
}

TEST_CASE("device: a step's metrics go to their place in the ring", "[kernels]") {
  for (const bool quantizer : {true, false})
    require_same_on_both(text({quantizer}), [=](auto place) {
      auto ring = place.array(std::vector<StepMetrics>(3));
      auto value = [&](float x) { return place.array(std::vector<float>{x}, 1); };
      auto count = [&](int32_t x) { return place.array(std::vector<int32_t>{x}, 1); };
      auto classification = value(4.5f);
      auto loss = value(1.5f), error = value(2.5f), norm = value(3.5f), distance = value(kInf);
      auto poisoned = count(1), bad_row = count(77), replaced = count(5);
      auto health = place.array(std::vector<CodebookHealth>{{3, 4, 2.0f, 1.5f, 0.5f, 0.25f}});
      for (const int64_t step : {0, 4, 8}) {  // the places 0, 1, 2
        auto state = place.array(std::vector<StepState>{{.step = step, .learning_rate = 0.125f}});
        RecordStepOp op{.ring = ring.view(),
                        .state = state.view(),
                        .reconstruction = loss.view(),
                        .error = error.view(),
                        .classification = {},
                        .squared_norm = norm.view(),
                        .poisoned = poisoned.view(),
                        .distance = {},
                        .first_bad_row = {},
                        .replaced = {},
                        .health = {}};
        if (quantizer) op.distance = distance.view(), op.first_bad_row = bad_row.view();
        if (quantizer && step == 4) op.replaced = replaced.view(), op.health = health.view();
        if (step > 0) op.classification = classification.view();
        run(op, place.stream());
        place.wait();
      }
      std::vector<double> all;
      for (const StepMetrics& metrics : ring.download())
        for (const double number : numbers(metrics)) all.push_back(number);
      return std::tuple(all);
    });
}

}  // namespace vqlab::testing
