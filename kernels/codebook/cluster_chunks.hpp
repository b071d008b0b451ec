// The chunks into which the latents of a code are cut, alike on both devices; see cluster_sums.hpp.
#pragma once

#include "../core/host_device.hpp"
#include "cluster_sums.hpp"

namespace vqlab {

// Tiles of dimensions, and later chunks: at most one begins in each kClusterChunk places of the sorted rows.
constexpr int64_t cluster_tiles(int64_t D) { return (D + kSquaresTile - 1) / kSquaresTile; }
constexpr int64_t later_chunks(int64_t N) { return (N + kClusterChunk - 1) / kClusterChunk; }

// Rows order[begin, end) of one code.
struct ClusterChunk {
  bool exists = false;
  int64_t code = 0, begin = 0, end = 0;
};

// Pieces [0, K) are the first chunks of the codes, empty ones among them. Piece K + i, i < later_chunks(N),
// is the later chunk that begins at a place [i * kClusterChunk, (i + 1) * kClusterChunk) of the order, if
// there is one: no two of them begin closer, and its code also owns the first of these places, since it began
// at least a chunk before. So a code with nearly all rows is as balanced as many small ones.
VQ_HOST_DEVICE inline ClusterChunk cluster_chunk(int64_t piece, int64_t K,
                                                 const int32_t* starts,   // (K + 1), first place of each code
                                                 const int32_t* order,    // (N), rows sorted by code
                                                 const int32_t* codes) {  // (N), of the rows
  ClusterChunk chunk;
  if (piece < K) {
    chunk = {true, piece, starts[piece], starts[piece + 1]};
  } else {
    const int64_t first_place = (piece - K) * kClusterChunk;
    chunk.code = codes[order[first_place]];
    const int64_t start = starts[chunk.code];
    const int64_t chunks_before = (first_place - start + kClusterChunk - 1) / kClusterChunk;
    chunk.begin = start + chunks_before * kClusterChunk;
    chunk.end = starts[chunk.code + 1];
    chunk.exists = chunks_before > 0 && chunk.begin < chunk.end;
  }
  if (chunk.end > chunk.begin + kClusterChunk) chunk.end = chunk.begin + kClusterChunk;
  return chunk;
}

// For a variant whose own pass over the latents does not quantize them: StraightThroughOp, if it is asked
// for. block_sums (sum_blocks(N * D)).
void quantize_beside(const ClusterSumsOp& op, float* block_sums, Stream stream);

}  // namespace vqlab
