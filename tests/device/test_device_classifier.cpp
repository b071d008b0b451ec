// What a classifier adds, on the device, against the CPU implementations, bit for bit.
#include "device_testing.hpp"
#include "kernels/nn/batch_norm.hpp"
#include "kernels/nn/cross_entropy.hpp"
#include "kernels/nn/dropout.hpp"
#include "on_both.hpp"

namespace vqlab::testing {
namespace {

struct Rows {
  int64_t R, C;
};
// Below and above the widths of vectors, of column blocks and of grids; one slice and many.
const std::vector<Rows> kRows = {{1, 1},   {2, 4},  {3, 5},     {37, 16},  {128, 64},
                                 {9, 300}, {33, 2}, {2049, 33}, {700, 32}, {5, 132}};

std::vector<std::byte> scratch_bytes(int64_t size) {
  return std::vector<std::byte>(size_t(size), std::byte{0xFF});
}

}  // namespace

TEST_CASE("device: batch norm and its gradients have the bits of the CPU", "[kernels]") {
  for (const auto& [R, C] : kRows)
    for (const int64_t offset : {0, 1})
      for (const Activation activation : {Activation::none, Activation::relu})
        require_same_on_both(text({R, C, offset, int64_t(activation)}), [=, R = R, C = C](auto place) {
          auto input = place.array(offset == 1 ? awkward_floats(R * C, 1) : normal_floats(R * C, 1), offset);
          auto d_output = place.array(normal_floats(R * C, 2), offset);
          auto scale = place.array(normal_floats(C, 3), 1), shift = place.array(normal_floats(C, 4), 1);
          auto mean = place.array(poison(C), 1), variance = place.array(poison(C), offset);
          auto d_scale = place.array(poison(C), 1), d_shift = place.array(poison(C), 1);
          auto output = place.array(poison(R * C), offset), d_input = place.array(poison(R * C), offset);
          auto inferred = place.array(poison(R * C), offset);
          auto scratch = place.array(scratch_bytes(batch_norm_scratch_bytes(R, C)));
          const auto rows = [=](auto& array) { return array.view({R, C}); };
          const Stream stream = place.stream();
          run(BatchNormOp{rows(output), mean.view(), variance.view(), rows(input), scale.view(), shift.view(),
                          1e-5f, activation, scratch.view()},
              stream);
          run(BatchNormBackwardOp{rows(d_input), d_scale.view(), d_shift.view(), rows(d_output), rows(input),
                                  mean.view(), variance.view(), scale.view(), 1e-5f, scratch.view()},
              stream);
          run(BatchNormInferenceOp{rows(inferred), rows(input), mean.view(), variance.view(), scale.view(),
                                   shift.view(), 1e-5f, activation},
              stream);
          // In place, and without a gradient of the input.
          run(BatchNormInferenceOp{rows(input), rows(input), shift.view(), variance.view(), scale.view(),
                                   shift.view(), 1e-5f, activation},
              stream);
          run(BatchNormBackwardOp{rows(d_output), d_scale.view(), d_shift.view(), rows(d_output), rows(input),
                                  mean.view(), variance.view(), scale.view(), 1e-5f, scratch.view()},
              stream);
          run(BatchNormBackwardOp{{},
                                  d_scale.view(),
                                  d_shift.view(),
                                  rows(d_output),
                                  rows(input),
                                  mean.view(),
                                  variance.view(),
                                  scale.view(),
                                  1e-5f,
                                  scratch.view()},
              stream);
          return std::tuple(output.download(), mean.download(), variance.download(), d_input.download(),
                            d_scale.download(), d_shift.download(), inferred.download(), input.download(),
                            d_output.download());
        });
}

TEST_CASE("device: batch norm has the bits of the CPU where some slices have no rows", "[kernels]") {
  const int64_t R = 1024 * 128 + 1, C = 17;
  const auto forward = [&](auto place) {
    std::vector<float> values = normal_floats(4096, 1);
    std::vector<float> all(size_t(R * C), 0.0f);
    for (size_t i = 0; i < all.size(); ++i) all[i] = values[i * 31 % 4096];
    auto input = place.array(all), output = place.array(poison(R * C));
    auto mean = place.array(poison(C)), variance = place.array(poison(C));
    auto scale = place.array(normal_floats(C, 3)), shift = place.array(normal_floats(C, 4));
    auto scratch = place.array(scratch_bytes(batch_norm_scratch_bytes(R, C)));
    run(BatchNormOp{output.view({R, C}), mean.view(), variance.view(), input.view({R, C}), scale.view(),
                    shift.view(), 1e-5f, Activation::none, scratch.view()},
        place.stream());
    return std::tuple(mean.download(), variance.download(), output.download());
  };
  const auto [mean, variance, output] = forward(OnDevice{});
  const auto [cpu_mean, cpu_variance, cpu_output] = forward(OnCpu{});
  require_same(mean, cpu_mean, "mean");
  require_same(variance, cpu_variance, "variance");
  require_same(output, cpu_output, "output");
}

TEST_CASE("device: running statistics have the bits of the CPU, and stay while poisoned", "[kernels]") {
  for (const int64_t C : {1, 255, 257})
    for (const int32_t halted : {0, 1})
      require_same_on_both(text({C, halted}), [=](auto place) {
        auto running_mean = place.array(normal_floats(C, 1), 1);
        auto running_variance = place.array(normal_floats(C, 2), 1);
        auto mean = place.array(awkward_floats(C, 3), 1), variance = place.array(awkward_floats(C, 4), 1);
        auto poisoned = place.array(std::vector<int32_t>{halted}, 1);
        run(BatchNormAverageOp{running_mean.view(), running_variance.view(), mean.view(), variance.view(),
                               poisoned.view(), 7, 0.1f},
            place.stream());
        return std::tuple(running_mean.download(), running_variance.download());
      });
}

TEST_CASE("device: dropout has the bits of the CPU at any size and alignment", "[kernels]") {
  for (const int64_t size : {0, 1, 3, 4, 255, 1030, 4099})
    for (const int64_t offset : {0, 1})
      for (const float probability : {0.0f, 0.3f})
        require_same_on_both(text({size, offset, int64_t(probability * 10)}), [=](auto place) {
          auto input = place.array(awkward_floats(size, 1), offset);
          auto output = place.array(poison(size), offset);
          auto state = place.array(std::vector<StepState>{{.step = 9}});
          run(DropoutOp{output.view(), input.view(), state.view(), probability, 7, 3}, place.stream());
          run(DropoutOp{input.view(), input.view(), state.view(), probability, 8, 3}, place.stream());
          return std::tuple(output.download(), input.download());
        });
}

TEST_CASE("device: cross-entropy has the bits of the CPU", "[kernels]") {
  struct Case {
    int64_t B, C;
    float mix, smoothing;
    bool outputs;   // gradient and probabilities
    bool awkward;   // NaN and infinity among the logits
    bool labelled;  // a row at all
  };
  for (const Case& c : std::vector<Case>{{1, 1, 1.0f, 0.0f, true, false, true},
                                         {7, 10, 1.0f, 0.0f, true, false, true},
                                         {9, 33, 0.3f, 0.1f, true, false, true},
                                         {8, 31, 0.0f, 0.1f, true, false, true},
                                         {8, 32, 0.5f, 0.0f, false, false, true},
                                         {70, 10, 0.5f, 0.1f, true, true, true},
                                         {70, 10, 1.0f, 0.0f, false, true, true},
                                         {5, 1000, 0.5f, 0.1f, true, false, true},
                                         {300, 3, 0.25f, 0.1f, true, false, true},
                                         {9, 10, 0.5f, 0.1f, true, true, false}})
    for (const int64_t offset : {0, 1})
      require_same_on_both(text({c.B, c.C, c.outputs, c.awkward, c.labelled, offset}), [=](auto place) {
        const int64_t size = c.B * c.C;
        std::vector<float> values = c.awkward ? awkward_floats(size, 1) : normal_floats(size, 1);
        for (size_t i = 3; i < values.size(); i += 5) values[i] = 1.5f;  // ties
        std::vector<int32_t> numbers;
        for (int64_t b = 0; b < c.B; ++b)
          numbers.push_back(b % 3 == 1 || !c.labelled ? -1 : int32_t(b * 7 % c.C));
        auto logits = place.array(values, offset), d_logits = place.array(poison(size), offset),
             probabilities = place.array(poison(size), offset), loss = place.array(poison(1), offset);
        auto labels = place.array(numbers, offset);
        auto correct = place.array(std::vector<int32_t>(size_t(c.B), -7), offset);
        auto state = place.array(std::vector<StepState>{{.mix = c.mix}});
        auto scratch = place.array(scratch_bytes(cross_entropy_scratch_bytes(c.B)));
        run(CrossEntropyOp{.d_logits = c.outputs ? d_logits.view({c.B, c.C}) : View<float>(),
                           .loss = loss.view(),
                           .correct = correct.view(),
                           .probabilities = c.outputs ? probabilities.view({c.B, c.C}) : View<float>(),
                           .logits = logits.view({c.B, c.C}),
                           .labels = labels.view(),
                           .state =
                               c.mix == 1.0f ? View<const StepState>() : View<const StepState>(state.view()),
                           .label_smoothing = c.smoothing,
                           .weight = 0.5f,
                           .scratch = scratch.view()},
            place.stream());
        return std::tuple(loss.download(), correct.download(), d_logits.download(), probabilities.download());
      });
}

TEST_CASE("device: cross-entropy takes more rows than the grid has warps", "[kernels]") {
  const int64_t B = 4096 * 8 + 5;
  const auto losses = [&](auto place) {
    auto logits = place.array(normal_floats(2 * B, 1)), loss = place.array(poison(1));
    auto labels = place.array(std::vector<int32_t>(size_t(B), 1));
    auto correct = place.array(std::vector<int32_t>(size_t(B), -7));
    auto scratch = place.array(scratch_bytes(cross_entropy_scratch_bytes(B)));
    run(CrossEntropyOp{.d_logits = {},
                       .loss = loss.view(),
                       .correct = correct.view(),
                       .probabilities = {},
                       .logits = logits.view({B, 2}),
                       .labels = labels.view(),
                       .state = {},
                       .label_smoothing = 0.1f,
                       .weight = 1.0f,
                       .scratch = scratch.view()},
        place.stream());
    return std::tuple(loss.download(), correct.download());
  };
  const auto [loss, correct] = losses(OnDevice{});
  const auto [cpu_loss, cpu_correct] = losses(OnCpu{});
  require_same(loss, cpu_loss, "loss");
  require_same(correct, cpu_correct, "correct");
}

}  // namespace vqlab::testing
