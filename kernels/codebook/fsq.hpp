// Finite scalar quantisation (Mentzer et al. 2023, in lucidrains' form): each dimension of a latent is
// bounded and rounded to one of a few levels. The codebook is the grid of all levels; nothing of it is
// learned.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "../core/elementary.hpp"
#include "../core/op.hpp"

namespace vqlab {

inline constexpr int kMaxFsqDimensions = 16;
inline constexpr int kMaxFsqLevel = 1000;  // above, the bound would let the rounding leave the levels
inline constexpr int64_t kMaxFsqCodes = 1 << 24;

// The levels and what follows from them, as kernels take it. Dimension d has L levels; the bounded latent is
// half * tanh(z + shift) - offset, the code counts from -width, base is the product of the levels before.
struct FsqGrid {
  int32_t D = 0, K = 0;
  int32_t level[kMaxFsqDimensions] = {}, base[kMaxFsqDimensions] = {}, width[kMaxFsqDimensions] = {};
  float half[kMaxFsqDimensions] = {}, shift[kMaxFsqDimensions] = {}, offset[kMaxFsqDimensions] = {};
};

// half = (L - 1) (1 + 1e-3) / 2, offset = 1/2 of an even L, else 0, shift = atanh(offset / half), width = L
// / 2. Throws Error(failed) unless there are 1 to 16 levels, each in [2, 1000], and at most 2^24 codes.
FsqGrid fsq_grid(std::span<const int64_t> levels);

// The number of the level of dimension d that a latent is rounded to, in [0, L); half to even.
VQ_HOST_DEVICE inline int32_t fsq_digit(const FsqGrid& grid, int d, float z) {
  const float bounded = grid.half[d] * portable_tanh(z + grid.shift[d]) - grid.offset[d];
  return int32_t(rintf(bounded)) + grid.width[d];
}
// The value of level `digit`, in [-1, 1].
VQ_HOST_DEVICE inline float fsq_value(const FsqGrid& grid, int d, int32_t digit) {
  return float(digit - grid.width[d]) / float(grid.width[d]);
}
// Derivative of the value by the latent without the rounding.
VQ_HOST_DEVICE inline float fsq_slope(const FsqGrid& grid, int d, float z) {
  const float t = portable_tanh(z + grid.shift[d]);
  return grid.half[d] * (1.0f - t * t) / float(grid.width[d]);
}
VQ_HOST_DEVICE inline int32_t fsq_digit_of_code(const FsqGrid& grid, int d, int32_t code) {
  return code / grid.base[d] % grid.level[d];
}

// codes[n] = sum_d digit_d * base_d, quantized[n] the values of its digits. A row with a latent that is not
// finite gets code 0.
struct FsqOp {
  View<float> quantized;        // (N, D)
  View<int32_t> codes;          // (N), in [0, K)
  View<int32_t> first_bad_row;  // (1), the first row with a latent that is not finite, or -1
  View<const float> latents;    // (N, D)
  FsqGrid grid;
  View<int32_t> counts = {};  // (K), rows of each code; or absent

  // Throws Error(failed) on shapes that disagree.
  void check() const;
};

// d_latents = d_quantized * slope: only the rounding is passed straight through.
struct FsqBackwardOp {
  View<float> d_latents;          // (N, D); may alias d_quantized
  View<const float> d_quantized;  // (N, D)
  View<const float> latents;      // (N, D)
  FsqGrid grid;

  void check() const;
};

// quantized[n] = the values of the digits of codes[n].
struct FsqDecodeOp {
  View<float> quantized;      // (N, D)
  View<const int32_t> codes;  // (N), in [0, K)
  FsqGrid grid;

  void check() const;
};

void run_cpu(const FsqOp& op);
void run_cuda(const FsqOp& op, Stream stream);
void run_cpu(const FsqBackwardOp& op);
void run_cuda(const FsqBackwardOp& op, Stream stream);
void run_cpu(const FsqDecodeOp& op);
void run_cuda(const FsqDecodeOp& op, Stream stream);

// Every code, decoded: (K, D), on the host.
std::vector<float> fsq_codebook(const FsqGrid& grid);

}  // namespace vqlab
