// The definition: rows in the order of their codes, a chunk at a time, and what is asked for beside the sums
// in the same pass. Traffic per element: 4 bytes of latents; with quantized latents 4 more, and the codebook
// once for each chunk; per row 16 bytes of sorting.
#include <algorithm>
#include <cstring>

#include "../../core/parallel.hpp"
#include "../../core/scratch.hpp"
#include "../../core/tree_sum.hpp"
#include "../cluster_chunks.hpp"

namespace vqlab {
namespace {

constexpr int64_t kChunksPerShard = 8, kCodesPerShard = 64;

struct Parts {
  int32_t* starts;       // (K + 1), first place of code k in order; starts[K] = N
  int32_t* order;        // (N), the rows, stably sorted by code
  float* later_sums;     // (later_chunks(N), D)
  float* squares;        // (K, tiles)
  float* later_squares;  // (later_chunks(N), tiles)
  int64_t bytes;
  Parts(ScratchParts scratch, int64_t N, int64_t K, int64_t D)
      : starts(scratch.take<int32_t>(K + 1)),
        order(scratch.take<int32_t>(N)),
        later_sums(scratch.take<float>(later_chunks(N) * D)),
        squares(scratch.take<float>(K * cluster_tiles(D))),
        later_squares(scratch.take<float>(later_chunks(N) * cluster_tiles(D))),
        bytes(scratch.bytes()) {}
};

int64_t scratch_bytes(int64_t N, int64_t K, int64_t D) { return Parts(ScratchParts(), N, K, D).bytes; }

void counting_sort(const View<const int32_t>& codes, int64_t K, const Parts& parts) {
  int32_t* starts = parts.starts;
  std::memset(starts, 0, size_t(K + 1) * sizeof(int32_t));
  for (int64_t n = 0; n < codes.size(); ++n) ++starts[codes.data[n] + 1];
  for (int64_t k = 0; k < K; ++k) starts[k + 1] += starts[k];
  for (int64_t n = 0; n < codes.size(); ++n) parts.order[starts[codes.data[n]]++] = int32_t(n);
  for (int64_t k = K; k > 0; --k) starts[k] = starts[k - 1];  // each start had moved to its end
  starts[0] = 0;
}

// Rows of one code and up to kSquaresTile of their dimensions; arrays begin at the first of these.
struct Rows {
  float* quantized;      // (N, D), or null
  const float* latents;  // (N, D)
  const float* code;     // (width), read if there is quantized
  const int32_t* order;  // (count)
  int64_t count, D, width;
};

// sum (width) of the rows in order; returns that of the squares, if there is quantized. kWidth: the width if
// it is known to the compiler, which then keeps the sums in registers; else 0.
template <int64_t kWidth>
inline __attribute__((always_inline)) float add_rows(const Rows& rows, float* __restrict sum) {
  const int64_t width = kWidth > 0 ? kWidth : rows.width;
  float partial[kSquaresTile] = {}, squares[kSquaresTile] = {};
  if (rows.quantized == nullptr) {
    for (int64_t i = 0; i < rows.count; ++i) {
      const float* latent = rows.latents + int64_t(rows.order[i]) * rows.D;
      for (int64_t d = 0; d < width; ++d) partial[d] += latent[d];
    }
    std::memcpy(sum, partial, size_t(width) * sizeof(float));
    return 0.0f;
  }
  float code[kSquaresTile] = {};
  std::memcpy(code, rows.code, size_t(width) * sizeof(float));
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t at = int64_t(rows.order[i]) * rows.D;
    const float* latent = rows.latents + at;
    float* __restrict quantized = rows.quantized + at;
    for (int64_t d = 0; d < width; ++d) {
      const float difference = latent[d] - code[d];
      quantized[d] = code[d];
      partial[d] += latent[d];
      squares[d] += difference * difference;
    }
  }
  std::memcpy(sum, partial, size_t(width) * sizeof(float));
  for (int64_t pairs = kSquaresTile / 2; pairs > 0; pairs /= 2)
    for (int64_t d = 0; d < pairs; ++d) squares[d] = squares[2 * d] + squares[2 * d + 1];
  return squares[0];
}

VQ_MULTIVERSION float add_rows_of(const Rows& rows, float* sum) {
  if (rows.width == 32) return add_rows<32>(rows, sum);
  if (rows.width == 16) return add_rows<16>(rows, sum);
  return add_rows<0>(rows, sum);
}

void add_piece(const ClusterSumsOp& op, const Parts& parts, int64_t piece) {
  const int64_t K = op.sums[0], D = op.sums[1], tiles = cluster_tiles(D);
  const ClusterChunk chunk = cluster_chunk(piece, K, parts.starts, parts.order, op.codes.data);
  if (!chunk.exists) return;
  if (piece < K) op.counts.data[piece] = parts.starts[piece + 1] - parts.starts[piece];
  float* sums = piece < K ? op.sums.data + piece * D : parts.later_sums + (piece - K) * D;
  float* squares = piece < K ? parts.squares + piece * tiles : parts.later_squares + (piece - K) * tiles;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t d = tile * kSquaresTile;
    squares[tile] = add_rows_of({.quantized = op.quantized ? op.quantized.data + d : nullptr,
                                 .latents = op.latents.data + d,
                                 .code = op.quantized ? op.codebook.data + chunk.code * D + d : nullptr,
                                 .order = parts.order + chunk.begin,
                                 .count = chunk.end - chunk.begin,
                                 .D = D,
                                 .width = std::min(kSquaresTile, D - d)},
                                sums + d);
  }
}

// Adds the later chunks of a code to its first one, in order.
void add_later(const ClusterSumsOp& op, const Parts& parts, int64_t k) {
  const int64_t D = op.sums[1], tiles = cluster_tiles(D);
  for (int64_t place = parts.starts[k] + kClusterChunk; place < parts.starts[k + 1]; place += kClusterChunk) {
    const float* sums = parts.later_sums + place / kClusterChunk * D;
    const float* squares = parts.later_squares + place / kClusterChunk * tiles;
    for (int64_t d = 0; d < D; ++d) op.sums.data[k * D + d] += sums[d];
    for (int64_t tile = 0; tile < tiles; ++tile) parts.squares[k * tiles + tile] += squares[tile];
  }
}

void run_counting_sort(const ClusterSumsOp& op, Stream) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1];
  const Parts parts(ScratchParts("cluster_sums", op.scratch, scratch_bytes(N, K, D)), N, K, D);
  counting_sort(op.codes, K, parts);
  parallel_ranges(K + later_chunks(N), kChunksPerShard, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) add_piece(op, parts, piece);
  });
  if (N > kClusterChunk)
    parallel_ranges(K, kCodesPerShard, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) add_later(op, parts, k);
    });
  if (op.quantized)
    op.distance.data[0] = finish_sum(parts.squares, K * cluster_tiles(D)) / float(op.latents.size());
}

}  // namespace

extern const ClusterSumsVariant cluster_sums_counting_sort;
const ClusterSumsVariant cluster_sums_counting_sort = {
    .name = "counting_sort",
    .device = Device::cpu,
    .idea = "counting sort of the rows by code, then the rows of each code in chunks, in order",
    .exact = true,
    .supports = [](int64_t, int64_t, int64_t) { return true; },
    .scratch_bytes = scratch_bytes,
    .run = run_counting_sort};

}  // namespace vqlab
