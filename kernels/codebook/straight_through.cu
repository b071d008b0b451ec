// quantized[n] = codebook[codes[n]] and mean ||latent - code||^2; d_latents = d_quantized + s (latent -
// code), and beside it the gradient of the codebook. Mapping: a block takes 4096 consecutive elements, a
// thread every 256th group of four of them, or single ones if D % 4 != 0 or a pointer is not aligned to 16
// bytes; the blocks behind those of the latents take elements of the codebook. The squares are laid out in
// shared memory and added in the order of tree_sum.hpp; one block adds the block sums. Traffic per element:
// forward 8 bytes, backward 12, both the least there is; per row 4 and what of the codebook is not in L2; 12
// per element of a codebook's gradient. Shared memory: 17 KiB forward, none backward. Needs: D < 2^30, codes
// in [0, K). Measured on an H200, fmnist-s (N = 6272, K = 256, D = 16): 5.2 + 2.4 us, 5.9 us backward,
// without codebook.
#include "straight_through.hpp"

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"
#include "../core/tree_sum.cuh"

namespace vqlab {
namespace {

// The elements of one block that a thread owns: pack p is [at(p), at(p) + kWidth) of them.
template <int kWidth>
struct Tile {
  static constexpr int kPacks = int(kSumBlock / kSumLanes) / kWidth;
  int64_t begin, first_row;
  unsigned count, first_column, D;

  __device__ Tile(int64_t elements, unsigned row_size) : D(row_size) {
    begin = int64_t(blockIdx.x) * kSumBlock;
    count = unsigned(min(kSumBlock, elements - begin));
    first_row = begin / D;  // the only division in 64 bits
    first_column = unsigned(begin - first_row * D);
  }
  __device__ unsigned at(int p) const { return (unsigned(p) * kSumThreads + threadIdx.x) * kWidth; }
  // The pack of codebook[codes] at the place of pack p.
  __device__ Floats<kWidth> code(int p, const float* codebook, const int32_t* codes) const {
    const unsigned column = first_column + at(p), row = column / D;
    return load_floats<kWidth>(codebook + int64_t(codes[first_row + row]) * D + (column - row * D));
  }
};

template <int kWidth>
__global__ void straight_through_kernel(float* quantized,       // (N, D)
                                        float* block_sums,      // (grid)
                                        const float* latents,   // (N, D)
                                        const float* codebook,  // (K, D)
                                        const int32_t* codes,   // (N)
                                        int64_t elements, unsigned D) {
  VQ_SHARED(Floats<kWidth>, squares, [kSumBlock / kWidth]);
  VQ_SHARED(float, lanes, [kSumLanes]);
  using Block = Tile<kWidth>;
  const Block tile(elements, D);
  Floats<kWidth> latent[Block::kPacks], code[Block::kPacks];  // all loads before the first store
  for (int p = 0; p < Block::kPacks; ++p) {
    if (tile.at(p) >= tile.count) continue;
    latent[p] = load_floats<kWidth>(latents + tile.begin + tile.at(p));
    code[p] = tile.code(p, codebook, codes);
  }
  for (int p = 0; p < Block::kPacks; ++p) {
    if (tile.at(p) >= tile.count) continue;
    store_floats<kWidth>(quantized + tile.begin + tile.at(p), code[p]);
    Floats<kWidth> square;
    for (int w = 0; w < kWidth; ++w) {
      const float difference = latent[p].at[w] - code[p].at[w];
      square.at[w] = difference * difference;
    }
    squares[tile.at(p) / kWidth] = square;
  }
  __syncthreads();  // all squares are written
  const float* terms = reinterpret_cast<const float*>(squares);
  const float sum = add_lanes(lane_of_terms(0, tile.count, [=](int64_t i) { return terms[i]; }), lanes);
  if (threadIdx.x == 0) block_sums[blockIdx.x] = sum;
}

__global__ void finish_distance_kernel(float* distance,          // (1)
                                       const float* block_sums,  // (blocks)
                                       int64_t blocks, float elements) {
  VQ_SHARED(float, lanes, [kSumLanes]);
  const float sum = finish_block_sums(block_sums, blocks, lanes);
  if (threadIdx.x == 0) *distance = sum / elements;
}

// d_codebook = scale * (counts * codebook - sums), as codebook_gradient_kernel computes it; d_codebook null:
// not wanted.
struct CodebookGradient {
  float* d_codebook;      // (K, D)
  const int32_t* counts;  // (K)
  const float* sums;      // (K, D)
  int64_t elements;       // K * D
  int64_t first_block;    // of those that write it: behind the blocks of the latents
  float scale;
};
template <class Visitor>
void visit_pointers(const CodebookGradient& gradient, const Visitor& visit) {
  visit(gradient.d_codebook), visit(gradient.counts), visit(gradient.sums);
}

// The elements [begin, begin + kSumBlock), by one block.
__device__ inline void write_codebook_gradient(const CodebookGradient& to, const float* codebook,
                                               int64_t begin, unsigned D) {
  const int64_t first_code = begin / D, end = min(begin + kSumBlock, to.elements);
  const auto first_column = unsigned(begin - first_code * D);
  for (int64_t i = begin + threadIdx.x; i < end; i += kSumThreads) {
    const int64_t code = first_code + (first_column + unsigned(i - begin)) / D;
    to.d_codebook[i] = to.scale * (float(to.counts[code]) * codebook[i] - to.sums[i]);
  }
}

template <int kWidth>
__global__ void straight_through_backward_kernel(float* d_latents,           // (N, D), may be d_quantized
                                                 CodebookGradient gradient,  // by the last blocks
                                                 const float* d_quantized,   // (N, D)
                                                 const float* latents,       // (N, D)
                                                 const float* codebook,      // (K, D)
                                                 const int32_t* codes,       // (N)
                                                 int64_t elements, unsigned D, float commitment_scale) {
  using Block = Tile<kWidth>;
  if (const int64_t block = int64_t(blockIdx.x) - gradient.first_block; block >= 0)
    return write_codebook_gradient(gradient, codebook, block * kSumBlock, D);
  const Block tile(elements, D);
  Floats<kWidth> d_latent[Block::kPacks], pull[Block::kPacks];  // all loads before the first store
  for (int p = 0; p < Block::kPacks; ++p) {
    if (tile.at(p) >= tile.count) continue;
    d_latent[p] = load_floats<kWidth>(d_quantized + tile.begin + tile.at(p));
    pull[p] = load_floats<kWidth>(latents + tile.begin + tile.at(p));
    const Floats<kWidth> code = tile.code(p, codebook, codes);
    for (int w = 0; w < kWidth; ++w) pull[p].at[w] = commitment_scale * (pull[p].at[w] - code.at[w]);
  }
  for (int p = 0; p < Block::kPacks; ++p) {
    if (tile.at(p) >= tile.count) continue;
    for (int w = 0; w < kWidth; ++w) d_latent[p].at[w] += pull[p].at[w];
    store_floats<kWidth>(d_latents + tile.begin + tile.at(p), d_latent[p]);
  }
}

}  // namespace

void run_cuda(const StraightThroughOp& op, Stream stream) {
  const int64_t elements = op.latents.size(), blocks = sum_blocks(elements);
  const unsigned D = size_in_32_bits("straight_through", op.latents[1]);
  const bool wide = D % 4 == 0 && aligned_to_16_bytes(op.quantized.data, op.latents.data, op.codebook.data);
  if (blocks > 0)
    launch("straight_through", wide ? straight_through_kernel<4> : straight_through_kernel<1>,
           {unsigned(blocks), kSumThreads}, stream, op.quantized.data, op.block_sums.data, op.latents.data,
           op.codebook.data, op.codes.data, elements, D);
  launch("finish_distance", finish_distance_kernel, {1, kSumThreads}, stream, op.distance.data,
         op.block_sums.data, blocks, float(elements));
}

void run_cuda(const StraightThroughBackwardOp& op, Stream stream) {
  const int64_t elements = op.latents.size(), latent_blocks = sum_blocks(elements);
  const int64_t blocks = latent_blocks + sum_blocks(op.d_codebook.size());
  if (blocks == 0) return;
  const unsigned D = size_in_32_bits("straight_through backward", op.latents[1]);
  const bool wide = D % 4 == 0 && aligned_to_16_bytes(op.d_latents.data, op.d_quantized.data, op.latents.data,
                                                      op.codebook.data);
  const CodebookGradient gradient{.d_codebook = op.d_codebook.data,
                                  .counts = op.counts.data,
                                  .sums = op.sums.data,
                                  .elements = op.d_codebook.size(),
                                  .first_block = latent_blocks,
                                  .scale = op.codebook_scale};
  launch("straight_through_backward",
         wide ? straight_through_backward_kernel<4> : straight_through_backward_kernel<1>,
         {unsigned(blocks), kSumThreads}, stream, op.d_latents.data, gradient, op.d_quantized.data,
         op.latents.data, op.codebook.data, op.codes.data, elements, D, op.commitment_scale);
}

}  // namespace vqlab
