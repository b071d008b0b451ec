#include "adam.hpp"

namespace vqlab {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999;
constexpr float kEpsilon = 1e-8f;

}  // namespace

void Adam::allocate(const Runtime& runtime, const ParameterStore& parameters) {
  const auto plan = [&] {
    state_ = slab_.take<OptimizerState>({1});
    squared_norm_ = slab_.take<float>({1});
    poisoned_ = slab_.take<int32_t>({1});
    block_sums_ = slab_.take<float>({sum_blocks(parameters.weights().size())});
  };
  plan();
  slab_.allocate(runtime);
  plan();
  const OptimizerState start;
  runtime.upload(state_.data, &start, state_.bytes(), runtime.compute());
  runtime.synchronize(runtime.compute());
}

void Adam::update(const ParameterStore& p, const AdamOptions& options, const View<const float>& loss,
                  const View<const int32_t>& first_bad_row, const View<const StepState>& step,
                  Stream stream) {
  run(GradientNormOp{.squared_norm = squared_norm_, .gradients = p.gradients(), .block_sums = block_sums_},
      stream);
  run(PoisonGateOp{.poisoned = poisoned_,
                   .optimizer = state_,
                   .loss = loss,
                   .squared_norm = squared_norm_,
                   .first_bad_row = first_bad_row,
                   .state = step,
                   .beta1 = kBeta1,
                   .beta2 = kBeta2,
                   .halt_after = options.halt_after},
      stream);
  run(AdamOp{.weights = p.weights(),
             .moment1 = p.moments1(),
             .moment2 = p.moments2(),
             .gradients = p.gradients(),
             .state = step,
             .optimizer = state_,
             .squared_norm = squared_norm_,
             .poisoned = poisoned_,
             .beta1 = float(kBeta1),
             .beta2 = float(kBeta2),
             .epsilon = kEpsilon,
             .clip = float(options.clip),
             .weight_decay = float(options.weight_decay),
             .decayed = options.weight_decay > 0.0 ? p.decayed() : View<const uint8_t>()},
      stream);
}

OptimizerState Adam::state_after(int64_t steps, int64_t skipped, int64_t skipped_in_a_row) {
  OptimizerState state{.updates = steps - skipped, .skipped = skipped, .skipped_in_a_row = skipped_in_a_row};
  for (int64_t i = 0; i < state.updates; ++i) {
    state.beta1_power *= kBeta1;
    state.beta2_power *= kBeta2;
  }
  return state;
}

}  // namespace vqlab
