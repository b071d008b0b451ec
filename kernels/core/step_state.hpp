// The scalars that change from step to step. They lie in device memory, so that a captured step can be
// replayed.
#pragma once

#include <cstdint>

namespace vqlab {

struct StepState {
  int64_t step = 0;  // of this update, from 0
  float learning_rate = 0.0f;
  float beta1_power = 1.0f;  // beta1^(step + 1), of Adam's bias correction
  float beta2_power = 1.0f;
};

}  // namespace vqlab
