// Between the fp32 tensors of the engine and the bf16 tensors of a library's convolution. On a GPU only.
#pragma once

#include "conv2d.hpp"

namespace vqlab {

// output = the nearest bf16 numbers, of any shape (precision.hpp).
void to_bf16_cuda(const View<uint16_t>& output, const View<const float>& input, Stream stream);

// Rows of pixels: output = activation(input + bias), in fp32, in the channels below `channels`, which the
// bias has if it is there; 0 in those beyond.
void from_bf16_cuda(const View<float>& output,          // (N, C)
                    const View<const uint16_t>& input,  // (N, C)
                    const View<const float>& bias,      // (channels), or absent
                    int64_t channels, Activation activation, Stream stream);

}  // namespace vqlab
