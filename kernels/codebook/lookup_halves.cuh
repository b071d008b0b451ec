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

// The codebook in fp16. Parts of LookupWork::rest.
struct HalfCodes {
  __half* codes;      // (K, half_dims(D)), half(q c_k)
  float* loss_norms;  // (norm_blocks), at least the |dc_k| of a block of codes
};
int64_t half_codes_bytes(int64_t K, int64_t D);  // of both, a multiple of 256
HalfCodes half_codes(std::byte* memory, int64_t K, int64_t D);
// Fills both, from pack_norms.
void pack_half_codes(const LookupOp& op, const LookupWork& work, const HalfCodes& halves, Stream stream);

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

// Rounds a row (D); put(d, pair) takes elements d and d + 1, d even below half_D. Called by whole warps; the
// result is the same in all lanes.
__device__ inline HalfRow round_row(const float* latent, int D, int half_D, float code_scale, auto&& put) {
  const int lane = int(threadIdx.x % 32);
  const auto add_lanes = [](float sum) {
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    return sum;
  };
  float square = 0.0f;
  for (int d = lane; d < D; d += 32) square = fmaf(latent[d], latent[d], square);
  square = add_lanes(square);
  const float scale = half_scale(sqrtf(square));
  const float back = 1.0f / scale;
  float loss_square = 0.0f;
  const auto round = [&](int d) {
    const float x = d < D ? latent[d] : 0.0f;
    const __half rounded = __float2half_rn(x * scale);
    const float loss = x - __half2float(rounded) * back;
    loss_square = fmaf(loss, loss, loss_square);
    return rounded;
  };
  for (int d = 2 * lane; d < half_D; d += 64) {
    const __half low = round(d);
    put(d, __halves2half2(low, round(d + 1)));
  }
  return {square, add_lanes(loss_square), back / code_scale};
}

// How far the scores of a row may be off beyond fp32, as settle_row takes it.
__device__ inline float half_error(const HalfRow& row, float loss_norm, int64_t D, const ErrorBound& bound) {
  constexpr float up = 1.0f + 0x1p-16f;
  const float X = bound.norm(row.square), dX = bound.norm(row.loss_square), dC = loss_norm;
  const float core = float((D + 15) / 16) * (2.0f * 19.0f * 0x1p-24f);
  return fmaf(dX, bound.C, (X + dX) * (dC + core * (bound.C + dC))) * up + kTiny;
}

}  // namespace vqlab
