// counts[k] and sums[k] of the rows of each code, and what is asked for beside them, to the bits of
// counting_sort.cpp: rows sorted by code (stable), cut into chunks of kClusterChunk.
// Mapping: a thread owns one dimension (four, where alignment allows) of one chunk, up to 32 (8) threads a
// tile of 32 dimensions. The first chunk of each code goes to `sums`, the others to scratch; they are added
// afterwards. Traffic: N * D floats of latents, with quantized latents N * D more; K * D of sums, and of
// codes if they are wanted; at most N * D / 128 of chunk sums twice; per row the sort: 12 bytes and CUB's 16
// for each 8 bits of the codes. Shared memory: none. Needs: nothing; any size and alignment to 4 bytes.
// Measured on an H200, before four dimensions a thread: 0.11 ms at (262144, 512, 64), sums alone.
#include <algorithm>
#include <bit>

#include "../../core/cuda.hpp"
#include "../../core/grid.hpp"
#include "../../core/prim.hpp"
#include "../../core/scratch.hpp"
#include "../cluster_chunks.cuh"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256;
constexpr int kChunksAtOnce = 16;  // loads in flight

__global__ void __launch_bounds__(kBlock) number_rows_kernel(int32_t* rows /*(N)*/, int64_t N) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t n = int64_t(blockIdx.x) * kBlock + threadIdx.x; n < N; n += stride) rows[n] = int32_t(n);
}

// starts[k] = the number of codes below k, by bisection.
__global__ void __launch_bounds__(kBlock)
    cluster_starts_kernel(int32_t* starts /*(K + 1)*/, const int32_t* sorted_codes /*(N)*/, int64_t N,
                          int64_t K) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t k = int64_t(blockIdx.x) * kBlock + threadIdx.x; k <= K; k += stride) {
    int64_t begin = 0, end = N;
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (sorted_codes[middle] < k)
        begin = middle + 1;
      else
        end = middle;
    }
    starts[k] = int32_t(begin);
  }
}

// Rows of `sums` and `squares`: of the codes, then those of later chunks.
struct ChunkOutputs {
  int32_t* counts;  // (K)
  float *sums, *later_sums, *squares, *later_squares, *quantized;
};
template <class Visitor>
void visit_pointers(const ChunkOutputs& to, const Visitor& visit) {
  visit(to.counts), visit(to.sums), visit(to.later_sums), visit(to.squares), visit(to.later_squares);
  visit(to.quantized);
}

// A unit is a tile of dimensions of a piece (cluster_chunks.hpp); `lanes` threads share one.
template <int kWidth, bool kQuantize>
__global__ void __launch_bounds__(kBlock)
    cluster_chunks_kernel(ChunkOutputs to, const float* latents /*(N, D)*/, const float* codebook /*(K, D)*/,
                          const int32_t* codes /*(N)*/, const int32_t* order /*(N)*/,
                          const int32_t* starts /*(K + 1)*/, int64_t K, int64_t D, int64_t pieces,
                          int64_t tiles, unsigned lanes) {
  const unsigned lane = threadIdx.x % lanes;
  const int64_t unit = int64_t(blockIdx.x) * (kBlock / lanes) + threadIdx.x / lanes;
  const int64_t piece = unit / tiles, tile = unit - piece * tiles, d = tile * kSquaresTile + lane * kWidth;
  ClusterChunk chunk;
  if (piece < pieces) chunk = cluster_chunk(piece, K, starts, order, codes);
  const int64_t row = piece < K ? piece : piece - K;
  ChunkSums<kWidth> result = {};
  if (chunk.exists && d < D) {
    result = add_chunk<kWidth, kQuantize>(to.quantized + d, latents + d, codebook + chunk.code * D + d, order,
                                          chunk.begin, chunk.end, D);
    store_floats<kWidth>((piece < K ? to.sums : to.later_sums) + row * D + d, result.sum);
  }
  if (chunk.exists && piece < K && tile == 0 && lane == 0)
    to.counts[piece] = starts[piece + 1] - starts[piece];
  if constexpr (kQuantize) {
    const float square = add_squares(result.square, lanes);
    if (chunk.exists && lane == 0) (piece < K ? to.squares : to.later_squares)[row * tiles + tile] = square;
  }
}

// sums[k] += the later chunks of code k, in order; squares likewise, as columns behind those of the sums.
__global__ void __launch_bounds__(kBlock)
    add_chunks_kernel(float* sums /*(K, D)*/, float* squares /*(K, tiles)*/,
                      const float* later_sums /*(N / 128, D)*/,
                      const float* later_squares /*(N / 128, tiles)*/, const int32_t* starts /*(K + 1)*/,
                      int64_t K, int64_t D, int64_t tiles) {
  const int64_t k = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (k >= K) return;
  const int64_t begin = starts[k] + kClusterChunk, end = starts[k + 1];
  const int64_t chunks = begin < end ? (end - begin + kClusterChunk - 1) / kClusterChunk : 0;
  if (chunks == 0) return;
  for (int64_t column = threadIdx.x; column < D + tiles; column += blockDim.x) {
    const bool is_sum = column < D;
    const int64_t width = is_sum ? D : tiles, d = is_sum ? column : column - D;
    const float* chunk = (is_sum ? later_sums : later_squares) + begin / kClusterChunk * width + d;
    float* total = (is_sum ? sums : squares) + k * width + d;
    float sum = *total;
    int64_t c = 0;
    for (; c + kChunksAtOnce <= chunks; c += kChunksAtOnce) {
      float elements[kChunksAtOnce];
#pragma unroll
      for (int j = 0; j < kChunksAtOnce; ++j) elements[j] = chunk[(c + j) * width];
#pragma unroll
      for (int j = 0; j < kChunksAtOnce; ++j) sum += elements[j];
    }
    for (; c < chunks; ++c) sum += chunk[c * width];
    *total = sum;
  }
}

int64_t pieces_of(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// The bits of the codes below K.
int code_bits(int64_t K) { return std::max(1, int(std::bit_width(uint64_t(K - 1)))); }

struct Parts {
  int32_t *rows, *order, *sorted_codes, *starts;  // (N), (N), (N), (K + 1)
  float *later_sums, *squares, *later_squares;    // see ChunkOutputs
  View<std::byte> sort;
  int64_t bytes;
  Parts(ScratchParts scratch, int64_t N, int64_t K, int64_t D)
      : rows(scratch.take<int32_t>(N)),
        order(scratch.take<int32_t>(N)),
        sorted_codes(scratch.take<int32_t>(N)),
        starts(scratch.take<int32_t>(K + 1)),
        later_sums(scratch.take<float>(later_chunks(N) * D)),
        squares(scratch.take<float>(K * cluster_tiles(D))),
        later_squares(scratch.take<float>(later_chunks(N) * cluster_tiles(D))) {
    const int64_t size = N > 0 ? sort_pairs_scratch_bytes(N, code_bits(K)) : 0;
    sort = {scratch.take<std::byte>(size), {size}};
    bytes = scratch.bytes();
  }
};

int64_t scratch_bytes(int64_t N, int64_t K, int64_t D) { return Parts(ScratchParts(), N, K, D).bytes; }

template <int kWidth, bool kQuantize>
void launch_chunks(const ClusterSumsOp& op, const Parts& parts, Stream stream) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1], tiles = cluster_tiles(D);
  const int64_t pieces = K + later_chunks(N);
  const unsigned lanes = tile_lanes(D, kWidth);
  const ChunkOutputs to{op.counts.data, op.sums.data,        parts.later_sums,
                        parts.squares,  parts.later_squares, op.quantized.data};
  launch("cluster_chunks", cluster_chunks_kernel<kWidth, kQuantize>,
         {unsigned(pieces_of(pieces * tiles, kBlock / lanes)), unsigned(kBlock)}, stream, to, op.latents.data,
         op.codebook.data, op.codes.data, parts.order, parts.starts, K, D, pieces, tiles, lanes);
}

void run_sorted(const ClusterSumsOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1];
  const Parts parts(ScratchParts("cluster_sums", op.scratch, scratch_bytes(N, K, D)), N, K, D);
  if (N > 0) {
    launch("number_rows", number_rows_kernel, {elementwise_grid(N, kBlock), unsigned(kBlock)}, stream,
           parts.rows, N);
    sort_pairs(parts.sorted_codes, parts.order, op.codes.data, parts.rows, N, code_bits(K), parts.sort,
               stream);
  }
  launch("cluster_starts", cluster_starts_kernel, {elementwise_grid(K + 1, kBlock), unsigned(kBlock)}, stream,
         parts.starts, parts.sorted_codes, N, K);
  const bool wide =
      D % 4 == 0 && aligned_to_16_bytes(op.latents.data, op.sums.data, op.quantized.data, op.codebook.data);
  const bool quantizes = bool(op.quantized);
  (quantizes ? wide ? launch_chunks<4, true> : launch_chunks<1, true>
   : wide ? launch_chunks<4, false>
             : launch_chunks<1, false>)(op, parts, stream);
  if (N > kClusterChunk) {
    const int64_t tiles = quantizes ? cluster_tiles(D) : 0, columns = D + tiles;
    const auto threads_d = unsigned(columns <= 32 ? int64_t(std::bit_ceil(uint64_t(columns)))
                                                  : std::min(kBlock, pieces_of(columns, 32) * 32));
    const unsigned threads_k = unsigned(kBlock) / threads_d;
    launch("add_chunks", add_chunks_kernel, {unsigned(pieces_of(K, threads_k)), dim3(threads_d, threads_k)},
           stream, op.sums.data, parts.squares, parts.later_sums, parts.later_squares, parts.starts, K, D,
           tiles);
  }
  if (quantizes) finish_cluster_distance(op, parts.squares, stream);
}

}  // namespace

extern const ClusterSumsVariant cluster_sums_sorted;
const ClusterSumsVariant cluster_sums_sorted = {
    .name = "sorted",
    .device = Device::cuda,
    .idea = "radix sort of the rows by code, then the rows of each code in chunks, in order",
    .exact = true,
    .supports = [](int64_t, int64_t, int64_t) { return true; },
    .scratch_bytes = scratch_bytes,
    .run = run_sorted,
};

}  // namespace vqlab
