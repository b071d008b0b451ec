// What stands behind a convolution, for one element, as two kernels do it.
#pragma once

#include "../core/cuda.hpp"
#include "conv_bias.hpp"

namespace vqlab {

// activation(x + bias[channel]), ReLU keeping NaN (x <= 0 ? 0 : x); 0 in padding channels. `bias` (channels)
// or null.
__device__ inline float biased(float x, const float* bias, unsigned channel, unsigned channels,
                               Activation activation) {
  if (channel >= channels) return 0.0f;
  if (bias != nullptr) x += bias[channel];
  return activation == Activation::relu && x <= 0.0f ? 0.0f : x;
}

}  // namespace vqlab
