// The straight-through estimator and its losses (van den Oord et al. 2017, equation 3).
#pragma once

#include "../core/op.hpp"
#include "../core/tree_sum.hpp"
#include "ema_update.hpp"

namespace vqlab {

// quantized[n] = codebook[codes[n]] exactly (not x + (c - x), which rounds), and mean ||latent - code||^2:
// the value of both the codebook and the commitment loss before their weights.
struct StraightThroughOp {
  View<float> quantized;       // (N, D); may not alias latents
  View<float> distance;        // (1), mean over all N * D elements, >= 0
  View<const float> latents;   // (N, D)
  View<const float> codebook;  // (K, D)
  View<const int32_t> codes;   // (N), in [0, K)
  View<float> block_sums;      // scratch, at least sum_blocks(N * D)

  // Throws Error(failed) on shapes that disagree.
  void check() const;
};

// d_latents = d_quantized + scale * (latents - codebook[codes]): the reconstruction gradient passes straight
// through the lookup, the commitment term pulls the latent to its code. scale = 2 * weight / (N * D).
struct StraightThroughBackwardOp {
  View<float> d_latents;          // (N, D); may alias d_quantized
  View<const float> d_quantized;  // (N, D)
  View<const float> latents;      // (N, D)
  View<const float> codebook;     // (K, D)
  View<const int32_t> codes;      // (N)
  float commitment_scale;         // 2 * quantizer_weight * commitment_weight / (N * D)

  // All or none: in the same launch, what CodebookGradientOp gives for a codebook that learns by its
  // gradient.
  View<float> d_codebook = {};      // (K, D)
  View<const int32_t> counts = {};  // (K)
  View<const float> sums = {};      // (K, D)
  float codebook_scale = 0.0f;      // 2 * quantizer_weight * codebook_weight / (N * D)

  void check() const;
  CodebookGradientOp codebook_gradient() const;
};

void run_cpu(const StraightThroughOp& op);
void run_cuda(const StraightThroughOp& op, Stream stream);
void run_cpu(const StraightThroughBackwardOp& op);
void run_cuda(const StraightThroughBackwardOp& op, Stream stream);

}  // namespace vqlab
