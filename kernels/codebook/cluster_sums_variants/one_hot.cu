// sums = one_hot(codes)^T latents for few codes, with every sum in a register: what is multiplied by 0 is
// left out, so NaN stays in its own code; no atomics, no sort, no dependence on how many rows a code has.
// Mapping: a block owns a slice of the rows and 32 dimensions, a thread 4 of these for one to four codes;
// rows come through shared memory 32 at a time, in order. The slices are then added in order: other bits than
// the definition's, the same in every run. Traffic: N * D floats of latents, N codes for each 32 dimensions,
// per slice (N / 1024, up to 128) 4 K D bytes written and read. N * max(K, 32) * D predicated additions bind
// from K = 16 on; on tensor cores, with latents in three bf16 parts, they would be cheaper: not built. Shared
// memory: 4.1 KiB. Needs: K <= 128; any alignment to 4 bytes. Not yet run on a GPU.
#include <algorithm>

#include "../../core/cuda.hpp"
#include "../../core/grid.hpp"
#include "../../core/scratch.hpp"
#include "../../core/tree_sum.hpp"
#include "../cluster_chunks.cuh"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256;
constexpr int kTile = 32, kRows = 32;                          // dimensions; rows at a time
constexpr int kWidth = 4, kDimensionThreads = kTile / kWidth;  // dimensions of a thread
constexpr int kCodeThreads = int(kBlock) / kDimensionThreads;  // threads with other codes
constexpr int64_t kMostCodes = 4 * kCodeThreads;

int64_t slices_of(int64_t N) { return std::clamp((N + 1023) / 1024, int64_t(1), int64_t(128)); }

// kCodes of a thread: its number among those with other codes, and every kCodeThreads-th from there.
template <int kCodes>
__global__ void __launch_bounds__(kBlock)
    one_hot_kernel(float* slice_sums /*(slices, K, D)*/, int32_t* slice_counts /*(slices, K)*/,
                   const float* latents /*(N, D)*/, const int32_t* codes /*(N)*/, int64_t N, int64_t K,
                   int64_t D, int64_t slice_rows) {
  VQ_SHARED(Floats<kWidth>, tile, [kRows][kDimensionThreads]);
  VQ_SHARED(int32_t, tile_codes, [kRows]);
  const int column = int(threadIdx.x) % kDimensionThreads, first_code = int(threadIdx.x) / kDimensionThreads;
  const int64_t first_d = int64_t(blockIdx.y) * kTile;
  const int64_t begin = int64_t(blockIdx.x) * slice_rows, end = min(N, begin + slice_rows);
  Floats<kWidth> sums[kCodes] = {};
  int32_t counts[kCodes] = {};
  for (int64_t n = begin; n < end; n += kRows) {
    float* const elements = &tile[0][0].at[0];
    for (int i = int(threadIdx.x); i < kRows * kTile; i += int(kBlock)) {
      const int64_t row = n + i / kTile, d = first_d + i % kTile;
      elements[i] = row < end && d < D ? latents[row * D + d] : 0.0f;
    }
    if (threadIdx.x < kRows) tile_codes[threadIdx.x] = n + threadIdx.x < end ? codes[n + threadIdx.x] : -1;
    __syncthreads();  // the rows are there
#pragma unroll 4
    for (int row = 0; row < kRows; ++row) {
      const int32_t code = tile_codes[row];
      const Floats<kWidth> latent = tile[row][column];
#pragma unroll
      for (int j = 0; j < kCodes; ++j) {
        if (code != first_code + j * kCodeThreads) continue;
        ++counts[j];
        for (int w = 0; w < kWidth; ++w) sums[j].at[w] += latent.at[w];
      }
    }
    __syncthreads();  // they are added before the next ones overwrite them
  }
#pragma unroll
  for (int j = 0; j < kCodes; ++j) {
    const int64_t k = first_code + j * kCodeThreads;
    if (k >= K) continue;
    for (int w = 0; w < kWidth; ++w) {
      const int64_t d = first_d + column * kWidth + w;
      if (d < D) slice_sums[(blockIdx.x * K + k) * D + d] = sums[j].at[w];
    }
    if (blockIdx.y == 0 && column == 0) slice_counts[blockIdx.x * K + k] = counts[j];
  }
}

__global__ void __launch_bounds__(kBlock)
    one_hot_slices_kernel(int32_t* counts /*(K)*/, float* sums /*(K, D)*/, const float* slice_sums,
                          const int32_t* slice_counts, int64_t slices, int64_t K, int64_t D) {
  const int64_t first = int64_t(blockIdx.x) * kBlock + threadIdx.x, stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = first; i < K * D; i += stride) {
    float sum = 0.0f;
    for (int64_t slice = 0; slice < slices; ++slice) sum += slice_sums[slice * K * D + i];
    sums[i] = sum;
  }
  for (int64_t k = first; k < K; k += stride) {
    int32_t count = 0;
    for (int64_t slice = 0; slice < slices; ++slice) count += slice_counts[slice * K + k];
    counts[k] = count;
  }
}

struct Parts {
  float* slice_sums;      // (slices, K, D)
  int32_t* slice_counts;  // (slices, K)
  float* block_sums;      // of quantize_beside
  int64_t bytes;
  Parts(ScratchParts scratch, int64_t N, int64_t K, int64_t D)
      : slice_sums(scratch.take<float>(slices_of(N) * K * D)),
        slice_counts(scratch.take<int32_t>(slices_of(N) * K)),
        block_sums(scratch.take<float>(sum_blocks(N * D))),
        bytes(scratch.bytes()) {}
};

int64_t scratch_bytes(int64_t N, int64_t K, int64_t D) { return Parts(ScratchParts(), N, K, D).bytes; }

void run_one_hot(const ClusterSumsOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1], slices = slices_of(N);
  const Parts parts(ScratchParts("cluster_sums", op.scratch, scratch_bytes(N, K, D)), N, K, D);
  const auto kernel = K <= kCodeThreads       ? one_hot_kernel<1>
                      : K <= 2 * kCodeThreads ? one_hot_kernel<2>
                                              : one_hot_kernel<4>;
  launch("one_hot", kernel, {dim3(unsigned(slices), unsigned((D + kTile - 1) / kTile)), kBlock}, stream,
         parts.slice_sums, parts.slice_counts, op.latents.data, op.codes.data, N, K, D,
         (N + slices - 1) / slices);
  launch("one_hot_slices", one_hot_slices_kernel, {elementwise_grid(K * D, kBlock), kBlock}, stream,
         op.counts.data, op.sums.data, parts.slice_sums, parts.slice_counts, slices, K, D);
  quantize_beside(op, parts.block_sums, stream);
}

}  // namespace

extern const ClusterSumsVariant cluster_sums_one_hot;
const ClusterSumsVariant cluster_sums_one_hot = {
    .name = "one_hot",
    .device = Device::cuda,
    .idea = "every sum in a register, for up to 128 codes: no sort, no atomics",
    .exact = false,
    .supports = [](int64_t, int64_t K, int64_t) { return K <= kMostCodes; },
    .scratch_bytes = scratch_bytes,
    .run = run_one_hot,
};

}  // namespace vqlab
