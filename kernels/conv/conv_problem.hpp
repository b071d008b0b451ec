// A convolution as CUDA libraries put it, and the two calls by which the library of the device computes it.
#pragma once

#include <compare>

#include "conv2d.hpp"

namespace vqlab {

// Large is the side that the filter moves over: the input of a normal convolution, the output of a transposed
// one. fprop goes from the large side to the small, dgrad back; wgrad is the gradient of the filter.
enum class ConvOperation { fprop, dgrad, wgrad };

// All that a plan depends on, the padding channels included. The filter is (small channels, kernel, kernel,
// large channels), as our weights are.
struct ConvProblem {
  ConvOperation operation;
  int64_t batch;
  int64_t large_height, large_width, large_channels;
  int64_t small_height, small_width, small_channels;
  int64_t kernel, stride, padding;

  auto operator<=>(const ConvProblem&) const = default;
  // "dgrad (128, 28, 28, 8) <- (128, 14, 14, 16), kernel 4, stride 2, padding 1"
  std::string text() const;
};

// What ConvForwardOp, ConvBackwardDataOp and ConvBackwardWeightOp ask for. Shapes (B, H, W, I) and (B, OH,
// OW, O).
ConvProblem forward_problem(const ConvGeometry& geometry, const View<const float>& input,
                            const View<const float>& output);
ConvProblem backward_data_problem(const ConvGeometry& geometry, const View<const float>& input,
                                  const View<const float>& output);
ConvProblem backward_weight_problem(const ConvGeometry& geometry, const View<const float>& input,
                                    const View<const float>& output);

// Memory that every convolution may use while it is computed, and the alignment of all operands, in bytes.
inline constexpr int64_t kConvWorkspaceBytes = 64 << 20;
inline constexpr int64_t kConvAlignment = 16;

// Enqueues an fprop or a dgrad: the target side is overwritten. workspace (kConvWorkspaceBytes). `op` names
// it in errors.
void convolve_cuda(const char* op, const ConvProblem& problem, float* target, const float* source,
                   const float* filter, std::byte* workspace, Stream stream);

// Enqueues a wgrad: the filter is overwritten.
void convolve_weight_gradient_cuda(const char* op, const ConvProblem& problem, float* d_filter,
                                   const float* large, const float* small, std::byte* workspace,
                                   Stream stream);

// Whether weight_gradient_cuda() is expected to be faster than that.
bool prefers_split_rows(const ConvProblem& problem);

}  // namespace vqlab
