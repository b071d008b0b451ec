// The gradient of a convolution's filter on a GPU, without a library: d_filter[s][ky][kx][l] = the sum over
// image, y, x of small[y][x][s] * large[y * stride + ky - padding][x * stride + kx - padding][l], 0 outside.
// Factors are rounded to the problem's precision, sums are fp32.
// The rows (image, y, x) are cut into slices, which are added in order. Where the cuts are depends on the
// shape alone: equal bits each time, not those of the CPU.
#pragma once

#include "conv_problem.hpp"

namespace vqlab {

// Enough for a filter (small_channels, kernel, kernel, large_channels); never more than kConvWorkspaceBytes.
int64_t weight_gradient_scratch_bytes(const ConvProblem& problem, int64_t small_channels,
                                      int64_t large_channels);

// d_filter is overwritten. The sides may have more channels than it, which are skipped. Any alignment to 4
// bytes.
void weight_gradient_cuda(const View<float>& d_filter, const ConvProblem& problem, const float* large,
                          const float* small, const View<std::byte>& scratch, Stream stream);

}  // namespace vqlab
