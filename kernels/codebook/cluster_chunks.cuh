// What the kernels share that add the latents of a code chunk by chunk; see cluster_sums.hpp.
#pragma once

#include "../core/elementwise.cuh"
#include "cluster_chunks.hpp"

namespace vqlab {

// Threads that share the dimensions of a tile, kWidth each: a power of two of them, within a warp.
inline unsigned tile_lanes(int64_t D, int width) {
  unsigned lanes = 1;
  while (int64_t(lanes) * width < (D < kSquaresTile ? D : kSquaresTile)) lanes *= 2;
  return lanes;
}

// Sums over the rows of a chunk, of kWidth dimensions: latents, and squared distances from the code.
template <int kWidth>
struct ChunkSums {
  Floats<kWidth> sum, square;
};

// Adds rows order[begin, end) in this order; with kQuantize also writes the code over their quantized
// latents. The arrays begin at the first of the dimensions in row 0; `code` at that of the code.
template <int kWidth, bool kQuantize>
__device__ inline ChunkSums<kWidth> add_chunk(float* quantized, const float* latents, const float* code,
                                              const int32_t* order, int64_t begin, int64_t end, int64_t D) {
  constexpr int kRowsAtOnce = 8;  // loads in flight
  ChunkSums<kWidth> sums = {};
  Floats<kWidth> quantum = {};
  if constexpr (kQuantize) quantum = load_floats<kWidth>(code);
  const auto add = [&](const Floats<kWidth>& latent, int64_t at) {
    for (int w = 0; w < kWidth; ++w) sums.sum.at[w] += latent.at[w];
    if constexpr (kQuantize) {
      for (int w = 0; w < kWidth; ++w) {
        const float difference = latent.at[w] - quantum.at[w];
        sums.square.at[w] += difference * difference;
      }
      store_floats<kWidth>(quantized + at, quantum);
    }
  };
  int64_t i = begin;
#pragma unroll 1  // more rows at once, and the registers do not hold them
  for (; i + kRowsAtOnce <= end; i += kRowsAtOnce) {
    int64_t at[kRowsAtOnce];
    Floats<kWidth> latent[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      at[r] = order[i + r] * D;
      latent[r] = load_floats<kWidth>(latents + at[r]);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) add(latent[r], at[r]);
  }
#pragma unroll 1
  for (; i < end; ++i) {
    const int64_t at = order[i] * D;
    add(load_floats<kWidth>(latents + at), at);
  }
  return sums;
}

// The squares of the dimensions of a tile, neighbours pairwise; called by whole warps, `lanes` threads of
// which share a tile. Those beyond the last dimension hold 0.
template <int kWidth>
__device__ inline float add_squares(Floats<kWidth> square, unsigned lanes) {
  for (int pairs = kWidth / 2; pairs > 0; pairs /= 2)
    for (int w = 0; w < pairs; ++w) square.at[w] = square.at[2 * w] + square.at[2 * w + 1];
  float sum = square.at[0];
  for (unsigned offset = 1; offset < lanes; offset *= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, int(offset));
  return sum;
}

// op.distance from squares (K, tiles).
void finish_cluster_distance(const ClusterSumsOp& op, const float* squares, Stream stream);

// The variant per_code, `scratch` apart: squares (K, tiles), if quantized latents are asked for. With
// `wanted` (1) nothing is done unless it is not 0.
void sum_per_code(const ClusterSumsOp& op, float* squares, const int32_t* wanted, Stream stream);

}  // namespace vqlab
