// The scalars that change from step to step. They lie in device memory, so that a captured step can be
// replayed.
#pragma once

#include <cstdint>

namespace vqlab {

struct StepState {
  int64_t step = 0;  // of this update, from 0
  float learning_rate = 0.0f;
  float beta1_power = 1.0f;  // beta1^t of Adam's bias correction, t = updates so far and this one
  float beta2_power = 1.0f;
  int64_t epoch = 0;  // with first_index: the place of the batch in the run, which keys its augmentation
  int64_t first_index = 0;  // place of the batch's first image in the epoch
};

}  // namespace vqlab
