// A convolution as CUDA libraries put it, and the two calls by which the library of the device computes it.
#pragma once

#include <compare>

#include "conv2d.hpp"

namespace vqlab {

// Large is the side that the filter moves over: the input of a normal convolution, the output of a transposed
// one. fprop goes from the large side to the small, dgrad back; wgrad is the gradient of the filter.
enum class ConvOperation { fprop, dgrad, wgrad };

// What the library does behind the convolution, in the same graph. bias and relu: target = relu(convolution +
// bias). mask: a gradient passes where the output of a ReLU, of the target's shape, is positive. mask_sums:
// and is added up over the pixels of each channel, which is the gradient of that layer's bias.
enum class ConvFusion { none, bias, bias_relu, mask, mask_sums };

// All that a plan depends on, the padding channels included. The filter is (small channels, kernel, kernel,
// large channels), as our weights are.
struct ConvProblem {
  ConvOperation operation;
  int64_t batch;
  int64_t large_height, large_width, large_channels;
  int64_t small_height, small_width, small_channels;
  int64_t kernel, stride, padding;
  Precision precision = Precision::fp32;
  ConvFusion fusion = ConvFusion::none;

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

struct ConvChoice;

// The operands of an fprop or a dgrad: floats, in bf16 the 16 bits of bf16 numbers.
struct ConvOperands {
  void* target;  // overwritten
  const void *source, *filter;
  const float* bias;  // (channels of the target); this and the mask are read where the choice is fused
  const float* mask = nullptr;  // as the target
};

// Enqueues an fprop or a dgrad, with what problem.fusion wants only if the choice is fused. workspace
// (kConvWorkspaceBytes). `op` names it in errors.
void convolve_cuda(const char* op, const ConvProblem& problem, const ConvChoice& choice,
                   const ConvOperands& operands, std::byte* workspace, Stream stream);

// Enqueues a wgrad of fp32 tensors, with products in fp32 or tf32: the filter is overwritten.
void convolve_weight_gradient_cuda(const char* op, const ConvProblem& problem, const ConvChoice& choice,
                                   float* d_filter, const float* large, const float* small,
                                   std::byte* workspace, Stream stream);

// Whether weight_gradient_cuda() is expected to be faster than that.
bool prefers_split_rows(const ConvProblem& problem);

}  // namespace vqlab
