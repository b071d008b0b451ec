#include "rotation.hpp"

#include <atomic>
#include <cmath>

#include "../core/parallel.hpp"
#include "../core/row_sum.hpp"

namespace vqlab {
namespace {

constexpr int64_t kRowsPerPiece = 256;

// One row; returns whether it fell back.
inline __attribute__((always_inline)) bool backward_row(float* d_latent, const float* g, const float* z,
                                                        const float* q, int64_t D, float commitment_scale) {
  const double z_length = std::sqrt(row_sum(D, [=](int64_t d) { return double(z[d]) * double(z[d]); }));
  const double q_length = std::sqrt(row_sum(D, [=](int64_t d) { return double(q[d]) * double(q[d]); }));
  const double z_inverse = 1.0 / z_length, q_inverse = 1.0 / q_length;
  const auto both = [=](int64_t d) { return double(z[d]) * z_inverse + double(q[d]) * q_inverse; };
  const double both_square = row_sum(D, [=](int64_t d) { return both(d) * both(d); });
  if (D == 1 || z_length < kMinimumRotation || q_length < kMinimumRotation ||
      both_square < kMinimumRotation * kMinimumRotation) {
    for (int64_t d = 0; d < D; ++d) d_latent[d] = g[d] + commitment_scale * (z[d] - q[d]);
    return true;
  }
  const double scale = q_length * z_inverse;
  const double along_w = 2.0 * row_sum(D, [=](int64_t d) { return both(d) * double(g[d]); }) / both_square;
  const double along_v = 2.0 * q_inverse * row_sum(D, [=](int64_t d) { return double(q[d]) * double(g[d]); });
  for (int64_t d = 0; d < D; ++d) {
    const double turned = double(g[d]) - along_w * both(d) + along_v * (double(z[d]) * z_inverse);
    d_latent[d] = float(scale * turned) + commitment_scale * (z[d] - q[d]);
  }
  return false;
}

VQ_MULTIVERSION int32_t backward_rows(const RotationBackwardOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.latents[1];
  int32_t fallbacks = 0;
  for (int64_t n = begin; n < end; ++n)
    fallbacks += backward_row(op.d_latents.data + n * D, op.d_quantized.data + n * D, op.latents.data + n * D,
                              op.codebook.data + op.codes.data[n] * D, D, op.commitment_scale);
  return fallbacks;
}

}  // namespace

void RotationBackwardOp::check() const {
  VQ_REQUIRE(latents.rank == 2 && same_shape(latents, d_latents) && same_shape(latents, d_quantized),
             "rotation backward: latents {}, d_latents {} and d_quantized {} differ", latents.shape(),
             d_latents.shape(), d_quantized.shape());
  VQ_REQUIRE(codebook.rank == 2 && codebook[1] == latents[1] && codes.size() == latents[0],
             "rotation backward: latents {}, codebook {} and {} codes disagree", latents.shape(),
             codebook.shape(), codes.size());
  VQ_REQUIRE(fallbacks.size() == 1, "rotation backward: fallbacks {} is not one element", fallbacks.shape());
}

void run_cpu(const RotationBackwardOp& op) {
  std::atomic<int32_t> fallbacks = 0;
  parallel_ranges(op.latents[0], kRowsPerPiece,
                  [&](int64_t begin, int64_t end) { fallbacks += backward_rows(op, begin, end); });
  op.fallbacks.data[0] = fallbacks;
}

}  // namespace vqlab
