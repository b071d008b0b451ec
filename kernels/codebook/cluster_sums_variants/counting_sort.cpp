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

// Neighbours pairwise, until one is left.
inline __attribute__((always_inline)) float add_neighbours(float* values /*(kSquaresTile)*/) {
  for (int64_t pairs = kSquaresTile / 2; pairs > 0; pairs /= 2)
    for (int64_t i = 0; i < pairs; ++i) values[i] = values[2 * i] + values[2 * i + 1];
  return values[0];
}

// Rows of one code and up to kSquaresTile of their dimensions; arrays begin at the first of these.
struct Rows {
  float* quantized;      // (N, D), or null
  const float* latents;  // (N, D)
  const float* code;     // (width), read if there is quantized
  const int32_t* order;  // (count)
  int64_t count, D, width;
};

// sum (width) of the rows in order; returns that of the squares, if there is quantized. For any width.
inline __attribute__((always_inline)) float add_rows(const Rows& rows, float* sum) {
  const int64_t width = rows.width;
  float partial[kSquaresTile] = {}, squares[kSquaresTile] = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t at = int64_t(rows.order[i]) * rows.D;
    const float* latent = rows.latents + at;
    for (int64_t d = 0; d < width; ++d) partial[d] += latent[d];
    if (rows.quantized == nullptr) continue;
    float* __restrict quantized = rows.quantized + at;
    for (int64_t d = 0; d < width; ++d) {
      const float difference = latent[d] - rows.code[d];
      quantized[d] = rows.code[d];
      squares[d] += difference * difference;
    }
  }
  std::memcpy(sum, partial, size_t(width) * sizeof(float));
  return add_neighbours(squares);
}

template <int kLanes>
struct Vector {
  typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
};

// The same for a width of kVectors vectors of kLanes, whose sums then stay in registers.
template <int kLanes, int kVectors, bool kQuantize>
inline __attribute__((always_inline)) float add_vectors(const Rows& rows, float* sum) {
  using Floats = typename Vector<kLanes>::Floats;
  Floats partial[kVectors] = {}, squares[kVectors] = {}, code[kVectors] = {};
  if constexpr (kQuantize) std::memcpy(code, rows.code, sizeof code);
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t at = int64_t(rows.order[i]) * rows.D;
    for (int v = 0; v < kVectors; ++v) {
      Floats latent;
      std::memcpy(&latent, rows.latents + at + v * kLanes, sizeof latent);
      partial[v] += latent;
      if constexpr (kQuantize) {
        const Floats difference = latent - code[v];
        squares[v] += difference * difference;
        std::memcpy(rows.quantized + at + v * kLanes, &code[v], sizeof latent);
      }
    }
  }
  std::memcpy(sum, partial, sizeof partial);
  float of_tile[kSquaresTile] = {};
  std::memcpy(of_tile, squares, sizeof squares);
  return add_neighbours(of_tile);
}

template <bool kQuantize>
inline __attribute__((always_inline)) float add_rows_of_width(const Rows& rows, float* sum) {
  if (rows.width == 32) return add_vectors<16, 2, kQuantize>(rows, sum);
  if (rows.width == 16) return add_vectors<16, 1, kQuantize>(rows, sum);
  if (rows.width == 8) return add_vectors<8, 1, kQuantize>(rows, sum);
  if (rows.width == 4) return add_vectors<4, 1, kQuantize>(rows, sum);
  return add_rows(rows, sum);
}

VQ_MULTIVERSION float add_rows_alone(const Rows& rows, float* sum) {
  return add_rows_of_width<false>(rows, sum);
}

VQ_MULTIVERSION float add_rows_quantizing(const Rows& rows, float* sum) {
  return add_rows_of_width<true>(rows, sum);
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
    const Rows rows{.quantized = op.quantized ? op.quantized.data + d : nullptr,
                    .latents = op.latents.data + d,
                    .code = op.quantized ? op.codebook.data + chunk.code * D + d : nullptr,
                    .order = parts.order + chunk.begin,
                    .count = chunk.end - chunk.begin,
                    .D = D,
                    .width = std::min(kSquaresTile, D - d)};
    squares[tile] = op.quantized ? add_rows_quantizing(rows, sums + d) : add_rows_alone(rows, sums + d);
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
