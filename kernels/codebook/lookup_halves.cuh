// fp16 operands for lookups that filter on tensor cores, and how far that puts a score off.
//
// A row x is rounded as half(p x), the codebook as half(q c), with powers of two p (for each row) and q that
// take the norms |x| and max |c_k| to [2^14, 2^15): nothing overflows, and what becomes subnormal is 2^-28 of
// them. The product of the roundings, divided by p q, is the score's x . c up to (kernels' notation: ^ is
// what the rounding stands for, d what it lost)
//   |x . c - x^ . c^| = |dx . c + x^ . dc| <= |dx| C + (X + |dx|) dC,
// and up to what the tensor core loses in ceil(D / 16) steps of 16. In each, 17 addends are cut off, and
// their sum is cut off to fp32. On Hopper addends are cut off at 2^-25 of the largest (arXiv 2512.07004);
// NVIDIA does not say. With 2^-24 that is 19 * 2^-24 |x^| |c^| a step, and twice that is assumed. A test
// measures it on the GPU at hand, and self-tests compare with score64.
#pragma once

#include <cuda_fp16.h>

#include "lookup_recheck.cuh"

namespace vqlab {

inline constexpr int64_t kHalfDims = 16;  // rows of halves are padded to multiples of this, with zeros
inline int64_t half_dims(int64_t D) { return (D + kHalfDims - 1) / kHalfDims * kHalfDims; }

// The power of two that takes a norm to [2^14, 2^15), as far as 2^-63 and 2^63 go.
__device__ inline float half_scale(float norm) {
  const int exponent = int(__float_as_uint(norm) >> 23) - 127;
  return __uint_as_float(unsigned(127 + min(max(14 - exponent, -63), 63)) << 23);
}

// What a row has become.
struct HalfRow {
  float square, loss_square;  // fp32 sums of x^2 and dx^2
  float unscale;              // 1 / (p q)
};

// The codebook in fp16. Parts of LookupWork::rest.
struct HalfCodes {
  __half* codes;      // (K, half_dims(D)), half(q c_k)
  float* loss_norms;  // (norm_blocks), at least the |dc_k| of a block of codes
};
int64_t half_codes_bytes(int64_t K, int64_t D);  // of both, a multiple of 256
HalfCodes half_codes(std::byte* memory, int64_t K, int64_t D);
// Fills both, from pack_norms.
void pack_half_codes(const LookupOp& op, const LookupWork& work, const HalfCodes& halves, Stream stream);

// The latents in fp16, for kernels that cannot round them on the way. Likewise.
struct HalfLatents {
  __half* latents;  // (N, half_dims(D))
  HalfRow* rows;    // (N)
};
int64_t half_latents_bytes(int64_t N, int64_t D);
HalfLatents half_latents(std::byte* memory, int64_t N, int64_t D);
void pack_half_latents(const LookupOp& op, const LookupWork& work, const HalfLatents& halves, Stream stream);

// As a register of an operand of mma: the lower element in the lower half.
__device__ inline uint32_t half_word(__half2 pair) {
  return uint32_t(__half_as_ushort(__low2half(pair))) | uint32_t(__half_as_ushort(__high2half(pair))) << 16;
}

// Rounds a row (D) by kLanes neighbouring lanes; put(d, pair) takes elements d and d + 1, d even below
// half_D. Called by whole warps, whose groups of lanes have a row each; the result is the same in a group.
template <int kLanes>
__device__ inline HalfRow round_row(const float* latent, int D, int half_D, float code_scale, auto&& put) {
  const int first = int(threadIdx.x % kLanes) * 2;
  const auto element = [&](int d) { return d < D ? latent[d] : 0.0f; };
  float square = 0.0f;
#pragma unroll 4
  for (int d = first; d < half_D; d += 2 * kLanes)
    square = fmaf(element(d), element(d), fmaf(element(d + 1), element(d + 1), square));
  square = add_neighbours<kLanes>(square);
  const float scale = half_scale(sqrtf(square));
  const float back = 1.0f / scale;
  float loss_square = 0.0f;
  const auto round = [&](float x) {
    const __half rounded = __float2half_rn(x * scale);
    const float loss = x - __half2float(rounded) * back;
    loss_square = fmaf(loss, loss, loss_square);
    return rounded;
  };
#pragma unroll 4
  for (int d = first; d < half_D; d += 2 * kLanes) {
    const __half low = round(element(d));
    put(d, __halves2half2(low, round(element(d + 1))));
  }
  return {square, add_neighbours<kLanes>(loss_square), back / code_scale};
}

// How far the scores of a row may be off beyond fp32, as settle_row takes it.
__device__ inline float half_error(const HalfRow& row, float loss_norm, int64_t D, const ErrorBound& bound) {
  constexpr float up = 1.0f + 0x1p-16f;
  const float X = bound.norm(row.square), dX = bound.norm(row.loss_square), dC = loss_norm;
  const float core = float((D + 15) / 16) * (2.0f * 19.0f * 0x1p-24f);
  return fmaf(dX, bound.C, (X + dX) * (dC + core * (bound.C + dC))) * up + kTiny;
}

// The two best scores of a row among codes that come in groups of kSlots: a score carries the number of its
// code in the group, its slot, in its lowest bits. 4 operations a score, where TopTwo takes 5.
template <int kSlots>
struct SlottedTopTwo {
  static_assert(kSlots <= 32 && (kSlots & (kSlots - 1)) == 0);
  float best, second;
  int32_t group;

  static __device__ SlottedTopTwo none() { return {kMinusInfinity, kMinusInfinity, 0}; }
  // A score of -infinity would turn into NaN; so much is below every score that the bound admits.
  static __device__ float start(float half_norm) { return fmaxf(half_norm, -0x1p127f); }
  static __device__ float slotted(float score, unsigned slot) {
    return __uint_as_float((__float_as_uint(score) & ~unsigned(kSlots - 1)) | slot);
  }
  // Two scores with their slots.
  __device__ void add(float a, float b) {
    const float high = fmaxf(a, b), low = fminf(a, b);
    second = fmaxf(fmaxf(second, low), fminf(best, high));
    best = fmaxf(best, high);
  }
  // Once the scores of a group are in; `before` is the best without them.
  __device__ void end_group(float before, int32_t number) { group = best != before ? number : group; }
  __device__ int slot() const { return int(__float_as_uint(best) & unsigned(kSlots - 1)); }
  // What the slots do to the scores of a row, whose norm is at most X.
  static __device__ float error(float X, const ErrorBound& bound) {
    return float(kSlots) * 0x1p-23f * fmaf(X, bound.C, bound.half_square) + kTiny;
  }
};

}  // namespace vqlab
