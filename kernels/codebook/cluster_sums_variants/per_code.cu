// The bits of counting_sort.cpp without a sort, in one launch, for few rows: each code looks for its own.
// Mapping: a block owns a code. It reads all codes, 1024 at a time, and lists its rows in order by prefix
// sums over warps; whenever 16 chunks are listed, and at the end, a thread adds one dimension of a chunk, up
// to 32 threads a tile, and the chunks are added in order. Traffic: N * D floats of latents, with quantized
// latents N * D more, K * D of sums and of codes if they are wanted; N * K codes, from L2: N * K <= 2^24
// (supports) is 64 MB. Shared memory: 14.1 KiB. Loses where one code has most of many rows: one block then
// adds them. Needs: any alignment to 4 bytes. Also what fixed_point falls back to. Not yet run on a GPU.
#include "../../core/cuda.hpp"
#include "../../core/scratch.hpp"
#include "../cluster_chunks.cuh"

namespace vqlab {
namespace {

constexpr unsigned kWarp = 32, kBlock = 256;
constexpr int kCodesOfThread = 4;
constexpr int kScan = int(kBlock) * kCodesOfThread;  // codes read at a time
constexpr int kChunks = 16;                          // that are added at a time
constexpr int kListed = kChunks * int(kClusterChunk);

struct CodeOutputs {
  int32_t* counts;                    // (K)
  float *sums, *squares, *quantized;  // (K, D), (K, tiles), (N, D)
};
template <class Visitor>
void visit_pointers(const CodeOutputs& to, const Visitor& visit) {
  visit(to.counts), visit(to.sums), visit(to.squares), visit(to.quantized);
}

// Appends the rows [begin, begin + kScan) with this code to `rows`, behind the `listed` first of it; returns
// how many. `warp_matches` may be used again after the next barrier.
__device__ int list_rows(int32_t* rows, int* warp_matches, const int32_t* codes, int64_t begin, int64_t N,
                         int32_t code, int listed) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = begin + int64_t(threadIdx.x) * kCodesOfThread;
  unsigned found = 0;
#pragma unroll
  for (int j = 0; j < kCodesOfThread; ++j)
    if (first + j < N && codes[first + j] == code) found |= 1u << j;
  int upto = __popc(found);
  for (unsigned offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, upto, offset);
    if (lane >= offset) upto += other;
  }
  if (lane == kWarp - 1) warp_matches[warp] = upto;
  __syncthreads();  // the numbers of all warps, and the list as it was, are there
  int place = listed + upto - __popc(found), all = 0;
  for (unsigned w = 0; w < kBlock / kWarp; ++w) {
    if (w < warp) place += warp_matches[w];
    all += warp_matches[w];
  }
#pragma unroll
  for (int j = 0; j < kCodesOfThread; ++j)
    if ((found >> j & 1u) != 0) rows[place++] = int32_t(first + j);
  __syncthreads();  // the list is complete, the numbers are read
  return all;
}

template <bool kQuantize>
__global__ void __launch_bounds__(kBlock)
    code_sums_kernel(CodeOutputs to, const float* latents /*(N, D)*/, const float* codebook /*(K, D)*/,
                     const int32_t* codes /*(N)*/, const int32_t* wanted /*(1), or null*/, int64_t N,
                     int64_t D, int64_t tiles, unsigned lanes) {
  VQ_SHARED(int32_t, rows, [kListed + kScan]);
  VQ_SHARED(int, warp_matches, [kBlock / kWarp]);
  VQ_SHARED(float, chunk_sums, [kChunks][kSquaresTile]);
  VQ_SHARED(float, chunk_squares, [kChunks]);
  if (wanted != nullptr && *wanted == 0) return;
  const int64_t code = blockIdx.x;
  const unsigned lane = threadIdx.x % lanes;
  const int group = int(threadIdx.x / lanes), groups = int(kBlock / lanes);
  for (int64_t d = threadIdx.x; d < D; d += kBlock) to.sums[code * D + d] = 0.0f;
  if constexpr (kQuantize)
    for (int64_t tile = threadIdx.x; tile < tiles; tile += kBlock) to.squares[code * tiles + tile] = 0.0f;
  __syncthreads();  // the sums are 0, for the threads that add to them
  int listed = 0, count = 0;
  for (int64_t begin = 0; begin < N; begin += kScan) {
    const int more = list_rows(rows, warp_matches, codes, begin, N, int32_t(code), listed);
    listed += more, count += more;
    while (listed >= kListed || (listed > 0 && begin + kScan >= N)) {
      const int taken = min(listed, kListed), chunks = (taken + int(kClusterChunk) - 1) / int(kClusterChunk);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t d = tile * kSquaresTile + lane;
        for (int first = 0; first < chunks; first += groups) {
          const int chunk = first + group, row = chunk * int(kClusterChunk);
          ChunkSums<1> result = {};
          if (chunk < chunks && d < D)
            result = add_chunk<1, kQuantize>(to.quantized + d, latents + d, codebook + code * D + d, rows,
                                             row, min(taken, row + int(kClusterChunk)), D);
          if (chunk < chunks) chunk_sums[chunk][lane] = result.sum.at[0];
          if constexpr (kQuantize) {
            const float square = add_squares(result.square, lanes);
            if (chunk < chunks && lane == 0) chunk_squares[chunk] = square;
          }
        }
        __syncthreads();  // the chunks of this tile are added
        if (threadIdx.x < lanes && d < D) {
          float sum = to.sums[code * D + d];
          for (int c = 0; c < chunks; ++c) sum += chunk_sums[c][lane];
          to.sums[code * D + d] = sum;
        }
        if constexpr (kQuantize)
          if (threadIdx.x == kWarp) {
            float square = to.squares[code * tiles + tile];
            for (int c = 0; c < chunks; ++c) square += chunk_squares[c];
            to.squares[code * tiles + tile] = square;
          }
        __syncthreads();  // they are read, before those of the next tile; so is the list
      }
      listed -= taken;
      for (int i = int(threadIdx.x); i < listed; i += int(kBlock)) rows[i] = rows[taken + i];
      __syncthreads();  // the rest of the list has moved to its front
    }
  }
  if (threadIdx.x == 0) to.counts[code] = count;
}

struct Parts {
  float* squares;  // (K, tiles)
  int64_t bytes;
  Parts(ScratchParts scratch, int64_t K, int64_t D)
      : squares(scratch.take<float>(K * cluster_tiles(D))), bytes(scratch.bytes()) {}
};

int64_t scratch_bytes(int64_t, int64_t K, int64_t D) { return Parts(ScratchParts(), K, D).bytes; }

void run_per_code(const ClusterSumsOp& op, Stream stream) {
  const int64_t K = op.sums[0], D = op.sums[1];
  const Parts parts(ScratchParts("cluster_sums", op.scratch, scratch_bytes(op.latents[0], K, D)), K, D);
  sum_per_code(op, parts.squares, nullptr, stream);
  if (op.quantized) finish_cluster_distance(op, parts.squares, stream);
}

}  // namespace

void sum_per_code(const ClusterSumsOp& op, float* squares, const int32_t* wanted, Stream stream) {
  const int64_t D = op.sums[1];
  const CodeOutputs to{op.counts.data, op.sums.data, squares, op.quantized.data};
  launch("code_sums", op.quantized ? code_sums_kernel<true> : code_sums_kernel<false>,
         {unsigned(op.sums[0]), kBlock}, stream, to, op.latents.data, op.codebook.data, op.codes.data, wanted,
         op.latents[0], D, cluster_tiles(D), tile_lanes(D, 1));
}

extern const ClusterSumsVariant cluster_sums_per_code;
const ClusterSumsVariant cluster_sums_per_code = {
    .name = "per_code",
    .device = Device::cuda,
    .idea = "each code lists its rows and adds them in chunks, in order: one launch, for few rows",
    .exact = true,
    .supports = [](int64_t N, int64_t K, int64_t) { return N <= 16384 && N * K <= int64_t(1) << 24; },
    .scratch_bytes = scratch_bytes,
    .run = run_per_code,
};

}  // namespace vqlab
