// What the CUDA lookups share. Each of them filters in fp32 or fp16: it keeps the best and the second best
// score of a row, and settle_row decides whether they are far enough apart to name the nearest code. The
// other rows go to a list, and recheck_lookup lets score64 decide them. So every such variant is exact.
#pragma once

#include "../core/cuda.hpp"
#include "lookup.hpp"
#include "score64.hpp"

namespace vqlab {

inline constexpr int64_t kPackCodes = 128;      // the packed codebook is padded to multiples of this ...
inline constexpr int64_t kPackDims = 8;         // ... and this
inline constexpr int64_t kPackBlockCodes = 32;  // codes that share one entry of pack_norms
inline constexpr float kInfinity = std::numeric_limits<float>::infinity(), kMinusInfinity = -kInfinity;

// A row that the filter could not decide: codes that score below `floor` cannot be its nearest.
struct Doubtful {
  int32_t row;
  float floor;
};

// The scratch of a lookup, cut into parts. packed_K and packed_D are K and D, padded.
struct LookupWork {
  int64_t packed_K, packed_D;
  float* codes_t;            // (packed_D, packed_K), the transposed codebook; 0 where padded
  float* half_norms;         // (packed_K), -|c_k|^2 / 2; -infinity where padded
  float* pack_norms;         // (packed_K / kPackBlockCodes), the largest |c_k| of a block, to nearest
  unsigned* doubtful_count;  // (1)
  Doubtful* doubtful;        // (N), in any order
  View<std::byte> rest;      // what a variant asked for, aligned to 256 bytes
  int64_t norm_blocks() const { return packed_K / kPackBlockCodes; }
};

// Scratch of a variant that needs `rest` bytes of its own.
int64_t lookup_work_bytes(int64_t N, int64_t K, int64_t D, int64_t rest = 0);

// Fills codes_t, half_norms and pack_norms, empties the list and sets first_bad_row to -1.
LookupWork prepare_lookup(const LookupOp& op, Stream stream);
// Replaces the codes of the rows in the list.
void recheck_lookup(const LookupOp& op, const LookupWork& work, Stream stream);

// The two best scores of a row so far, and the code of the best.
struct TopTwo {
  float best, second;
  int32_t code;

  static __device__ TopTwo none() { return {kMinusInfinity, kMinusInfinity, 0}; }
  __device__ void add(float score, int32_t k) {
    second = fmaxf(second, fminf(best, score));
    code = score > best ? k : code;
    best = fmaxf(best, score);
  }
  __device__ void merge(const TopTwo& other) {
    second = fmaxf(fmaxf(second, other.second), fminf(best, other.best));
    code = other.best > best ? other.code : code;
    best = fmaxf(best, other.best);
  }
  // With the lane whose number differs in the bits of `lanes`. Called by whole warps.
  __device__ void merge_lanes(int lanes) {
    constexpr unsigned kAll = 0xffffffffu;
    TopTwo other;
    other.best = __shfl_xor_sync(kAll, best, lanes);
    other.second = __shfl_xor_sync(kAll, second, lanes);
    other.code = __shfl_xor_sync(kAll, code, lanes);
    merge(other);
  }
};

inline constexpr float kTiny = 0x1p-124f;

// For a codebook whose largest norm is `largest`. Upper bounds as functions of n, the fp32 sum of x^2: |x| <=
// X = sqrt(n * norm_scale + kTiny); no partial sum of a score exceeds C * X + half_square; a code that scores
// below the best by more than (a2 * X + a1) * X + a0 is not the nearest.
struct ErrorBound {
  float largest, norm_scale, C, half_square, a2, a1, a0;

  __device__ float norm(float square) const { return sqrtf(fmaf(square, norm_scale, kTiny)); }
};
// Let u = 2^-24, g = r u / (1 - r u) with r = D + 4, X >= |x|, C >= |c_k|. A score is the sum of the rounded
// -|c|^2 / 2 and D products; in whatever order, fused or not, no term is rounded more than D + 3 times. So a
// score is within e = g (X C + C^2 / 2) of its exact value (the spare u pays for rounding `floor`). score64
// is a distance <= (X + C)^2 within a relative (D + 3) 2^-53 =: q, and distances are |x|^2 - 2 s. Hence
// score64's winner scores at least best - 2 e - q (X + C)^2, a polynomial in X.
// A library may flush subnormal operands and results to 0: a score then loses at most
// 2^-126 sqrt(D) (X + C + 2 sqrt(D)), and `flush` holds twice that. `up` pays for rounding the coefficients,
// for evaluating them, and for `largest`, which is rounded to nearest; kTiny for results below the normal
// range, off by at most 2^-150 each. From D = 2^23 on g is infinite, and score64 decides everywhere.
__device__ inline ErrorBound error_bound(float largest, int64_t D) {
  constexpr float up = 1.0f + 0x1p-16f;
  const float ru = float(D + 4) * 0x1p-24f;
  const float g = ru < 0.5f ? ru / (1.0f - ru) : kInfinity;
  const float C = largest * up, q = float(D + 3) * 0x1p-53f;
  const float root = sqrtf(float(D)), flush = root * 0x1p-124f;
  ErrorBound bound;
  bound.largest = largest;
  bound.norm_scale = (1.0f + 2.0f * g) * up;
  bound.C = C * up;
  bound.half_square = 0.5f * C * C * up;
  bound.a2 = q * up;
  bound.a1 = 2.0f * (g + q) * C * up + (flush + kTiny);
  bound.a0 = (g + q) * C * C * up + (flush * (C + root) * up + kTiny);
  return bound;
}

// The sum over the kLanes lanes whose numbers differ in the lowest bits only.
template <int kLanes>
__device__ inline float add_neighbours(float sum) {
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  return sum;
}

// The largest of norms (count), the same in all lanes. By each warp for itself, so that nothing waits.
__device__ inline float warp_largest(const float* norms, int64_t count) {
  float largest = 0.0f;
  for (int64_t i = threadIdx.x % 32; i < count; i += 32) largest = fmaxf(largest, norms[i]);
  for (int lanes = 16; lanes > 0; lanes /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  return largest;
}

// The same by all threads of a block of at most 1024, for many norms; before it is called again they
// synchronise.
__device__ inline float block_largest(const float* norms, int64_t count) {
  VQ_SHARED(float, warp_largest_norms, [32]);
  float largest = 0.0f;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) largest = fmaxf(largest, norms[i]);
  for (int lanes = 16; lanes > 0; lanes /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  if (threadIdx.x % 32 == 0) warp_largest_norms[threadIdx.x / 32] = largest;
  __syncthreads();  // the maximum of every warp is stored before the threads read them
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) largest = fmaxf(largest, warp_largest_norms[warp]);
  return largest;
}

// The bound for the whole codebook; see block_largest.
__device__ inline ErrorBound block_error_bound(const float* pack_norms, int64_t norm_blocks, int64_t D) {
  return error_bound(block_largest(pack_norms, norm_blocks), D);
}

// Where a filter leaves its results: the op's outputs (codes (N), first_bad_row (1), whose -1 is the largest
// unsigned number) and the list.
struct RowSink {
  int32_t* codes;
  unsigned* first_bad_row;
  unsigned* doubtful_count;
  Doubtful* doubtful;
};

// Writes the code of a row, or puts the row on the list. `square` is the fp32 sum of its x^2 in any order,
// `latent` the row (D). `filter_error`: how far the scores may be off beyond what fp32 rounding does to them.
// Called by whole warps, of one-dimensional blocks; rows of inactive lanes are ignored.
__device__ inline void settle_row(const RowSink& sink, bool active, int32_t row, const TopTwo& top,
                                  float square, const float* latent, int64_t D, const ErrorBound& bound,
                                  float filter_error = 0.0f) {
  const float X = bound.norm(square);
  const float reach = fmaf(X, bound.C, bound.half_square);
  const bool bounded = reach < 0x1p126f;  // false where x is not finite
  const float floor = top.best - (fmaf(X, fmaf(X, bound.a2, bound.a1), bound.a0) + 2.0f * filter_error);
  bool doubtful = active && !(bounded && top.second < floor);  // NaN is doubtful
  int32_t code = top.code;
  if (doubtful && !bounded && !is_finite_row(latent, D)) {
    atomicMin(sink.first_bad_row, unsigned(row));
    code = 0;
    doubtful = false;
  }
  if (active) sink.codes[row] = code;

  const unsigned lanes = __ballot_sync(0xffffffffu, doubtful);
  if (lanes == 0) return;  // the same in the whole warp
  const int lane = int(threadIdx.x % 32), first = __ffs(int(lanes)) - 1;
  unsigned place = 0;
  if (lane == first) place = atomicAdd(sink.doubtful_count, unsigned(__popc(lanes)));
  place = __shfl_sync(0xffffffffu, place, first) + unsigned(__popc(lanes & ((1u << lane) - 1)));
  if (doubtful) sink.doubtful[place] = {row, bounded ? floor : kMinusInfinity};
}

}  // namespace vqlab
