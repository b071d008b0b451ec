// Copies of weights with more or fewer channels.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// output[r][c] = input[r][c] where the input has such an element, else 0: pads with zeros, or crops, or both.
// On a GPU only; the two do not overlap.
void pad_channels_cuda(const View<float>& output,       // (rows, channels)
                       const View<const float>& input,  // (other rows, other channels)
                       Stream stream);

}  // namespace vqlab
