// Reconstruction losses. The target is an image of floats by type: class labels, which are int32, cannot be
// passed.
#pragma once

#include "../core/op.hpp"
#include "../core/tree_sum.hpp"

namespace vqlab {

enum class ReconstructionKind { squared, absolute };

// loss = scale * mean |r - x|^p over the unmasked pixels, p = 2 or 1; d_reconstruction is its gradient, 0 in
// the mask. Only the upper left height x width pixels count: the rest is padding. scale = 1, or 1 / variance
// of the training pixels. error = the same mean without the scale; for squared and pixels in [0, 1] that is
// the MSE. The sums run over (B, H, W, channels) in that order, masked terms being 0.
struct ReconstructionLossOp {
  View<float> d_reconstruction;      // (B, H, W, C), or absent (evaluation)
  View<float> loss;                  // (1), >= 0
  View<float> error;                 // (1), >= 0
  View<float> squared_error;         // (B), sum over the unmasked pixels of each image, always p = 2
  View<const float> reconstruction;  // (B, H, W, C)
  View<const float> target;          // (B, H, W, C)
  int64_t height, width;             // of the image without padding, in [1, H] and [1, W]
  int64_t channels;                  // C; on the GPU less if channels are padded, see conv2d.hpp
  ReconstructionKind kind;
  float scale;             // > 0
  View<float> block_sums;  // scratch, at least sum_blocks(B * H * W * channels)

  // Throws Error(failed) on shapes that disagree or a size out of range.
  void check() const;
};

void run_cpu(const ReconstructionLossOp& op);
void run_cuda(const ReconstructionLossOp& op, Stream stream);

}  // namespace vqlab
