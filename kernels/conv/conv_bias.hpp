// What cuDNN's convolutions leave to us: bias and ReLU, and the gradient of the bias. On a GPU only.
#pragma once

#include "conv2d.hpp"

namespace vqlab {

// In place, rows of pixels: x = activation(x + bias) in the channels below `channels`, which the bias has if
// it is there; 0 in those beyond.
void add_conv_bias_cuda(const View<float>& tensor,      // (N, C)
                        const View<const float>& bias,  // (channels), or absent
                        int64_t channels, Activation activation, Stream stream);

// Bytes of scratch that the next needs, aligned to 4.
int64_t conv_bias_gradient_scratch_bytes(int64_t rows, int64_t channels);

// d_bias = the sums of the first columns of d_output, in the order of column_sums.hpp.
void conv_bias_gradient_cuda(const View<float>& d_bias,          // (O), O <= C
                             const View<const float>& d_output,  // (N, C)
                             const View<std::byte>& scratch, Stream stream);

}  // namespace vqlab
