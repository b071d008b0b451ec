// Room 9's optimiser: the gradient norm, the gate that keeps a bad step out of the weights, and Adam.
#pragma once

#include "params.hpp"

namespace vqlab {

struct AdamOptions {
  double clip = 0.0;          // largest gradient norm; 0 = off
  double weight_decay = 0.0;  // of the weights of convolutions
  int64_t halt_after = 100;   // bad steps in a row that end the training
};

class Adam {
 public:
  // Takes its scalars, for parameters that have been allocated.
  void allocate(const Runtime& runtime, const ParameterStore& parameters);
  // One update from the gradients, unless the loss (1), the gradients or the latents are not finite;
  // first_bad_row (1) as in PoisonGateOp, or absent.
  void update(const ParameterStore& parameters, const AdamOptions& options, const View<const float>& loss,
              const View<const int32_t>& first_bad_row, const View<const StepState>& step, Stream stream);

  View<OptimizerState> state() const { return state_; }             // (1)
  View<const float> squared_norm() const { return squared_norm_; }  // (1), of the last update's gradients
  View<const int32_t> poisoned() const { return poisoned_; }        // (1), not 0: it changed nothing
  // What state() is after so many steps, of which some were skipped.
  static OptimizerState state_after(int64_t steps, int64_t skipped, int64_t skipped_in_a_row);

 private:
  Slab slab_{"optimiser scalars"};
  View<OptimizerState> state_;
  View<float> squared_norm_, block_sums_;
  View<int32_t> poisoned_;
};

}  // namespace vqlab
