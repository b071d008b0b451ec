// counts[k] and sums[k] in integers, which add up to the same bits in any order: no sort, no dependence on
// how many rows a code has. A latent becomes q = round(x 2^(31 - e)), below 2^31; its halves q >> 16 and q &
// 0xffff are added by native 32-bit atomics to accumulators of the block in shared memory, which 65536 rows
// cannot overflow; those of all blocks are added in 64 bits. One scale for a call: 2^e is 16 to 32 times the
// largest absolute value in 256 rows spread over all (more exactly, its power of two times 32), so a sum is
// off by at most 2^-27 of that for each latent, beside its own rounding. Overflow: a latent of 2^e or more,
// or NaN, or a sample too small or large for a scale, sets a flag, and per_code then computes the sums (and
// reads all codes K times: rare). Mapping: a block owns a slice of the rows and 8 to 32 dimensions, so that
// the accumulators of all codes fit. Traffic: N * D floats of latents; per slice (up to 32, or N / 65536) 8 K
// D bytes written and read, and N codes for each tile of dimensions. Shared memory: 4 K + 8 K * tile bytes,
// up to 93.5 KiB. Needs: K <= 1408; any alignment to 4 bytes. Not yet run on a GPU.
#include <algorithm>

#include "../../core/cuda.hpp"
#include "../../core/grid.hpp"
#include "../../core/scratch.hpp"
#include "../../core/tree_sum.hpp"
#include "../cluster_chunks.cuh"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 512, kFinishBlock = 256;
constexpr int kRowsAtOnce = 8;    // loads in flight
constexpr int kHeadroomBits = 5;  // of 2^e above the power of two in the largest sampled value
constexpr int64_t kSampledRows = 256, kMostRows = 65536, kFewestRows = 1024, kSlices = 32;
constexpr int64_t kMostAccumulatorBytes = 88 * 1024;

struct FixedScale {
  float limit;       // 2^e; 0: nothing fits
  float up, down;    // 2^(31 - e), 2^(e - 31)
  int32_t overflow;  // not 0: the integers cannot hold the latents
};

// Dimensions of a block, a power of two; 0 if the accumulators of 8 do not fit.
int64_t tile_of(int64_t K, int64_t D) {
  int64_t tile = 32;
  while (tile >= 8 && K * tile * 8 > kMostAccumulatorBytes) tile /= 2;
  if (tile < 8) return 0;
  while (tile > 1 && tile / 2 >= D) tile /= 2;
  return tile;
}

struct Slices {
  int64_t count, rows;
  Slices(int64_t N, int64_t K) {  // so many rows that their sums are no more than half as large as they
    const auto of = [N](int64_t size) { return (N + size - 1) / size; };
    count = std::max({int64_t(1), std::min(of(std::max(kFewestRows, 4 * K)), kSlices), of(kMostRows)});
    rows = of(count);
  }
};

__global__ void __launch_bounds__(kBlock)
    choose_scale_kernel(FixedScale* scale /*(1)*/, const float* latents /*(N, D)*/, int64_t N, int64_t D) {
  VQ_SHARED(int, largest_bits, [1]);
  if (threadIdx.x == 0) largest_bits[0] = 0;
  __syncthreads();  // before the maxima
  const int64_t rows = min(N, kSampledRows);
  float largest = 0.0f;
  for (int64_t i = threadIdx.x; i < rows * D; i += kBlock) {
    const int64_t row = i / D * N / rows;
    largest = fmaxf(largest, fabsf(latents[row * D + i % D]));
  }
  atomicMax(&largest_bits[0], __float_as_int(largest));  // not negative, so ordered as integers
  __syncthreads();                                       // the maximum of all
  if (threadIdx.x != 0) return;
  constexpr int kBias = 127, kSmallest = -90, kLargest = 120;  // so that all powers are normal numbers
  const int exponent = (largest_bits[0] >> 23) - kBias;
  FixedScale result{0.0f, 1.0f, 1.0f, 1};
  if (exponent >= kSmallest && exponent <= kLargest) {
    const int e = exponent + kHeadroomBits;
    const auto power = [](int of) { return __int_as_float((of + kBias) << 23); };
    result = {power(e), power(31 - e), power(e - 31), 0};
  }
  *scale = result;
}

__global__ void __launch_bounds__(kBlock)
    fixed_point_kernel(FixedScale* scale /*(1)*/, int64_t* slice_sums /*(slices, K, D)*/,
                       int32_t* slice_counts /*(slices, K)*/, const float* latents /*(N, D)*/,
                       const int32_t* codes /*(N)*/, int64_t N, int64_t K, int64_t D, int64_t slice_rows,
                       unsigned tile) {
  VQ_DYN_SHARED(16, memory);
  int* const high = reinterpret_cast<int*>(memory);                    // (K, tile)
  unsigned* const low = reinterpret_cast<unsigned*>(high + K * tile);  // (K, tile)
  int* const counts = reinterpret_cast<int*>(low + K * tile);          // (K)
  for (int64_t i = threadIdx.x; i < K * tile; i += kBlock) high[i] = 0, low[i] = 0u;
  for (int64_t k = threadIdx.x; k < K; k += kBlock) counts[k] = 0;
  __syncthreads();  // the accumulators are 0
  const float limit = scale->limit, up = scale->up;
  const unsigned lane = threadIdx.x % tile;
  const int64_t d = int64_t(blockIdx.y) * tile + lane;
  const int64_t begin = int64_t(blockIdx.x) * slice_rows, end = min(N, begin + slice_rows);
  const auto add = [&](int32_t code, float x) {
    const bool fits = fabsf(x) < limit;  // not NaN either
    const int q = fits ? int(rintf(x * up)) : 0;
    atomicAdd(high + int64_t(code) * tile + lane, q >> 16);
    atomicAdd(low + int64_t(code) * tile + lane, unsigned(q) & 0xffffu);
    return !fits;
  };
  const int64_t stride = kBlock / tile;
  bool overflow = false;
  for (int64_t n = begin + threadIdx.x / tile; n < end; n += kRowsAtOnce * stride) {
    int32_t code[kRowsAtOnce];
    float x[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = n + r * stride;
      code[r] = row < end ? codes[row] : -1;
      x[r] = row < end && d < D ? latents[row * D + d] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      if (code[r] < 0) continue;
      if (blockIdx.y == 0 && lane == 0) atomicAdd(counts + code[r], 1);
      if (d < D) overflow = add(code[r], x[r]) || overflow;
    }
  }
  if (overflow) atomicOr(&scale->overflow, 1);
  __syncthreads();  // all rows are added
  for (int64_t i = threadIdx.x; i < K * tile; i += kBlock) {
    const int64_t k = i / tile, column = int64_t(blockIdx.y) * tile + i % tile;
    if (column < D)
      slice_sums[(blockIdx.x * K + k) * D + column] = int64_t(high[i]) * 65536 + int64_t(low[i]);
  }
  if (blockIdx.y != 0) return;
  for (int64_t k = threadIdx.x; k < K; k += kBlock) slice_counts[blockIdx.x * K + k] = counts[k];
}

__global__ void __launch_bounds__(kFinishBlock)
    fixed_point_slices_kernel(int32_t* counts /*(K)*/, float* sums /*(K, D)*/, const int64_t* slice_sums,
                              const int32_t* slice_counts, const FixedScale* scale /*(1)*/, int64_t slices,
                              int64_t K, int64_t D) {
  if (scale->overflow != 0) return;
  const double down = double(scale->down);
  const int64_t first = int64_t(blockIdx.x) * kFinishBlock + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kFinishBlock;
  for (int64_t i = first; i < K * D; i += stride) {
    int64_t sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += slice_sums[slice * K * D + i];
    sums[i] = float(double(sum) * down);
  }
  for (int64_t k = first; k < K; k += stride) {
    int32_t count = 0;
    for (int64_t slice = 0; slice < slices; ++slice) count += slice_counts[slice * K + k];
    counts[k] = count;
  }
}

struct Parts {
  FixedScale* scale;
  int64_t* slice_sums;    // (slices, K, D)
  int32_t* slice_counts;  // (slices, K)
  float* block_sums;      // of quantize_beside
  int64_t bytes;
  Parts(ScratchParts scratch, int64_t N, int64_t K, int64_t D)
      : scale(scratch.take<FixedScale>(1)),
        slice_sums(scratch.take<int64_t>(Slices(N, K).count * K * D)),
        slice_counts(scratch.take<int32_t>(Slices(N, K).count * K)),
        block_sums(scratch.take<float>(sum_blocks(N * D))),
        bytes(scratch.bytes()) {}
};

int64_t scratch_bytes(int64_t N, int64_t K, int64_t D) { return Parts(ScratchParts(), N, K, D).bytes; }

void run_fixed_point(const ClusterSumsOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1], tile = tile_of(K, D);
  const Parts parts(ScratchParts("cluster_sums", op.scratch, scratch_bytes(N, K, D)), N, K, D);
  const Slices slices(N, K);
  launch("choose_scale", choose_scale_kernel, {1, kBlock}, stream, parts.scale, op.latents.data, N, D);
  launch("fixed_point", fixed_point_kernel,
         {dim3(unsigned(slices.count), unsigned((D + tile - 1) / tile)), kBlock, size_t(K * (8 * tile + 4))},
         stream, parts.scale, parts.slice_sums, parts.slice_counts, op.latents.data, op.codes.data, N, K, D,
         slices.rows, unsigned(tile));
  launch("fixed_point_slices", fixed_point_slices_kernel,
         {elementwise_grid(K * D, kFinishBlock), kFinishBlock}, stream, op.counts.data, op.sums.data,
         parts.slice_sums, parts.slice_counts, parts.scale, slices.count, K, D);
  sum_per_code(
      {.counts = op.counts, .sums = op.sums, .latents = op.latents, .codes = op.codes, .scratch = {}},
      nullptr, &parts.scale->overflow, stream);
  quantize_beside(op, parts.block_sums, stream);
}

}  // namespace

extern const ClusterSumsVariant cluster_sums_fixed_point;
const ClusterSumsVariant cluster_sums_fixed_point = {
    .name = "fixed_point",
    .device = Device::cuda,
    .idea = "integers of one scale, added by atomics in any order; latents beyond it are left to per_code",
    .exact = false,
    .supports = [](int64_t, int64_t K, int64_t D) { return tile_of(K, D) > 0; },
    .scratch_bytes = scratch_bytes,
    .run = run_fixed_point,
};

}  // namespace vqlab
