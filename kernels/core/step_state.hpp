// The scalars that change from step to step. They lie in device memory, so that a captured step can be
// replayed and the host need not wait to know them.
#pragma once

#include <cstdint>

#include "host_device.hpp"

namespace vqlab {

// Computed by the host, many steps at a time; BeginStepOp takes those of the next step from the plan.
struct StepState {
  int64_t step = 0;  // of this update, from 0
  float learning_rate = 0.0f;
  int64_t epoch = 0;  // with first_index: the place of the batch in the run, which keys its augmentation
  int64_t first_index = 0;  // place of the batch's first image in the epoch
  float mix = 1.0f;  // mixup: what an image keeps of itself; the rest is the mirrored place's, B - 1 - b
};

// Kept by PoisonGateOp on the device; the host reads it with the metrics.
struct OptimizerState {
  int64_t updates = 0;           // steps that changed the weights
  int64_t skipped = 0;           // steps dropped because a value was not finite
  int64_t skipped_in_a_row = 0;  // of them, those since the last update
  int64_t halted_at = -1;        // the step whose bad values ended the run, or -1
  double beta1_power = 1.0;      // beta1^updates, a product of that many factors: equal bits on every device
  double beta2_power = 1.0;
};

// What PoisonGateOp does to the state, on every device.
VQ_HOST_DEVICE inline void advance_optimizer(OptimizerState& state, bool bad, int64_t step, double beta1,
                                             double beta2, int64_t halt_after) {
  if (state.halted_at >= 0) return;
  if (!bad) {
    ++state.updates;
    state.skipped_in_a_row = 0;
    state.beta1_power *= beta1;
    state.beta2_power *= beta2;
  } else if (state.skipped_in_a_row + 1 >= halt_after) {
    state.halted_at = step;
  } else {
    ++state.skipped;
    ++state.skipped_in_a_row;
  }
}

}  // namespace vqlab
