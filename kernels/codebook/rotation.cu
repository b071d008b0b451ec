// d_latents = s R^T g + scale * (z - q), R the rotation from a latent's direction to its code's; see
// rotation.hpp. Mapping: a warp owns a row, its lanes every 32nd element; rows are taken with the stride of
// the grid. Three passes over the row: lengths, products, result; sums in the order of row_sum.hpp. The rows
// that fall back are counted by one integer atomic a warp. Traffic: 16 bytes an element from memory, the
// later passes from L1, and 4 a row. Shared memory: none. Needs: D < 2^30, codes in [0, K); any size and
// alignment to 4 bytes. Not yet run on a GPU.
#include "rotation.hpp"

#include "../core/fill.hpp"
#include "../core/grid.hpp"
#include "../core/row_sum.cuh"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256, kRowsPerBlock = kBlock / unsigned(kRowLanes);

__global__ void __launch_bounds__(kBlock)
    rotation_backward_kernel(float* d_latents,          // (N, D), may be d_quantized
                             int32_t* fallbacks,        // (1), 0 before
                             const float* d_quantized,  // (N, D)
                             const float* latents,      // (N, D)
                             const float* codebook,     // (K, D)
                             const int32_t* codes,      // (N)
                             int64_t N, unsigned D, float commitment_scale) {
  const unsigned lane = threadIdx.x % unsigned(kRowLanes), warp = threadIdx.x / unsigned(kRowLanes);
  int32_t fallen = 0;
  for (int64_t n = int64_t(blockIdx.x) * kRowsPerBlock + warp; n < N;
       n += int64_t(gridDim.x) * kRowsPerBlock) {
    const float *z = latents + n * D, *q = codebook + int64_t(codes[n]) * D, *g = d_quantized + n * D;
    float* d_latent = d_latents + n * D;
    const double z_length = sqrt(warp_row_sum(D, [=](unsigned d) { return double(z[d]) * double(z[d]); }));
    const double q_length = sqrt(warp_row_sum(D, [=](unsigned d) { return double(q[d]) * double(q[d]); }));
    const double z_inverse = 1.0 / z_length, q_inverse = 1.0 / q_length;
    const auto both = [=](unsigned d) { return double(z[d]) * z_inverse + double(q[d]) * q_inverse; };
    const double both_square = warp_row_sum(D, [=](unsigned d) { return both(d) * both(d); });
    if (D == 1 || z_length < kMinimumRotation || q_length < kMinimumRotation ||
        both_square < kMinimumRotation * kMinimumRotation) {  // alike in all lanes
      for (unsigned d = lane; d < D; d += unsigned(kRowLanes))
        d_latent[d] = g[d] + commitment_scale * (z[d] - q[d]);
      ++fallen;
      continue;
    }
    const double scale = q_length * z_inverse;
    const double along_w =
        2.0 * warp_row_sum(D, [=](unsigned d) { return both(d) * double(g[d]); }) / both_square;
    const double along_v =
        2.0 * q_inverse * warp_row_sum(D, [=](unsigned d) { return double(q[d]) * double(g[d]); });
    for (unsigned d = lane; d < D; d += unsigned(kRowLanes)) {
      const double turned = double(g[d]) - along_w * both(d) + along_v * (double(z[d]) * z_inverse);
      d_latent[d] = float(scale * turned) + commitment_scale * (z[d] - q[d]);
    }
  }
  if (lane == 0 && fallen > 0) atomicAdd(fallbacks, fallen);
}

}  // namespace

void run_cuda(const RotationBackwardOp& op, Stream stream) {
  const int64_t N = op.latents[0];
  run_cuda(FillOp{.output = {reinterpret_cast<float*>(op.fallbacks.data), {1}}, .value = 0.0f}, stream);
  if (op.latents.size() == 0) return;
  const unsigned D = size_in_32_bits("rotation backward", op.latents[1]);
  launch("rotation_backward", rotation_backward_kernel, {elementwise_grid(N, kRowsPerBlock), kBlock}, stream,
         op.d_latents.data, op.fallbacks.data, op.d_quantized.data, op.latents.data, op.codebook.data,
         op.codes.data, N, D, op.commitment_scale);
}

}  // namespace vqlab
