// The rotation trick (Fifty et al. 2024): another gradient past the lookup; the forward value stays the code.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// A latent, a code, or the sum of both their directions, that is shorter has no direction to turn from or to.
inline constexpr double kMinimumRotation = 1e-6;

// With z a latent, q its code, u = z / ||z||, v = q / ||q||, w = (u + v) / ||u + v||, s = ||q|| / ||z||, all
// held constant, the code is q = s R z, R = I - 2 w w^T + 2 v u^T the rotation from u to v. So, g =
// d_quantized:
//   d_latents = s R^T g + scale * (z - q),   s R^T g = s (g - 2 (w.g) w + 2 (v.g) u)
// A row falls back to the straight-through gradient, g in place of s R^T g, if D = 1 or ||z||, ||q|| or ||u +
// v|| is below kMinimumRotation. Everything but the commitment term in double.
struct RotationBackwardOp {
  View<float> d_latents;          // (N, D); may alias d_quantized
  View<int32_t> fallbacks;        // (1), rows that fell back
  View<const float> d_quantized;  // (N, D)
  View<const float> latents;      // (N, D)
  View<const float> codebook;     // (K, D)
  View<const int32_t> codes;      // (N)
  float commitment_scale;         // as of StraightThroughBackwardOp

  // Throws Error(failed) on shapes that disagree.
  void check() const;
};

void run_cpu(const RotationBackwardOp& op);
void run_cuda(const RotationBackwardOp& op, Stream stream);

}  // namespace vqlab
