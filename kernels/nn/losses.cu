// Mean of |r - x|^p, p = 2 or 1, with its gradient, and the squared error of each image; masked terms are 0.
// Mapping: a block takes kSumBlock terms, a thread every 256th of their pixels with all channels, four at a
// time if there are a multiple of four. The terms are laid out in shared memory and added in the order of
// tree_sum.hpp; one block adds the block sums. The block of a pixel's first term writes its gradient. Images
// whose size is a multiple of kSumBlock get their squared error from the block sums, others read again, a
// block per image.
// Traffic: 12 bytes per element, up to 20 in the latter case. Shared memory: 17 KiB.
// Needs: sides and channels below 2^30; any alignment to 4 bytes. Measured on an H200, (128, 28, 28, 1): 13.4
// + 2.6 + 5.7 us.
#include "losses.hpp"

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"
#include "../core/tree_sum.cuh"

namespace vqlab {
namespace {

// Of the batch, of the part that counts, and what the gradient is multiplied by.
struct Extent {
  unsigned H, W, C, height, width, channels;
  bool squared;
  float gradient_scale;
};

// d|difference|^p / p, times the scale: the difference itself, or its sign (0 at 0, NaN stays NaN).
__device__ float gradient_of(float difference, bool squared, float gradient_scale) {
  if (squared) return gradient_scale * difference;
  const float magnitude = difference < 0.0f ? -gradient_scale : gradient_scale;
  return difference == 0.0f ? 0.0f : difference != difference ? difference : magnitude;
}

// Writes the terms [begin, end), at most kSumBlock, to `terms` in shared memory, and the gradient, if it is
// wanted, of the pixels that begin among them.
template <int kWidth>
__device__ void write_terms(float* terms,                 // (kSumBlock), shared
                            float* gradient,              // (B, H, W, C), or null
                            const float* reconstruction,  // (B, H, W, C)
                            const float* target,          // (B, H, W, C)
                            int64_t begin, int64_t end, const Extent& e) {
  const int64_t first_pixel = begin / e.channels, first_row = first_pixel / e.W;
  const unsigned first_channel = unsigned(begin - first_pixel * e.channels);
  const unsigned first_x = unsigned(first_pixel - first_row * e.W), first_y = unsigned(first_row % e.H);
  const unsigned count = unsigned(end - begin);
  const unsigned pixels = (first_channel + count + e.channels - 1) / e.channels;
  for (unsigned p = threadIdx.x; p < pixels; p += kSumThreads) {
    const unsigned rows = (first_x + p) / e.W, x = first_x + p - rows * e.W, y = (first_y + rows) % e.H;
    const bool counts = x < e.width && y < e.height;
    const int64_t element = (first_pixel + p) * e.C;
    for (unsigned c = 0; c < e.C; c += kWidth) {
      Floats<kWidth> r{}, t{}, g;
      if (counts && c < e.channels) {
        r = load_floats<kWidth>(reconstruction + element + c);
        t = load_floats<kWidth>(target + element + c);
      }
      for (unsigned w = 0; w < kWidth; ++w) {
        const bool channel_counts = c + w < e.channels;
        const float difference = counts && channel_counts ? r.at[w] - t.at[w] : 0.0f;
        const unsigned term = p * e.channels + c + w - first_channel;  // wraps before the block
        if (channel_counts && term < count)
          terms[term] = e.squared ? difference * difference : fabsf(difference);
        g.at[w] = counts && channel_counts ? gradient_of(difference, e.squared, e.gradient_scale) : 0.0f;
      }
      if (gradient != nullptr && (p > 0 || first_channel == 0))
        store_floats<kWidth>(gradient + element + c, g);
    }
  }
}

// The lane sum of `count` terms in shared memory, in thread 0.
__device__ float add_terms(const float* terms, int64_t count, float* lanes) {
  __syncthreads();  // all terms are written
  return add_lanes(lane_of_terms(0, count, [=](int64_t i) { return terms[i]; }), lanes);
}

template <int kWidth>
__global__ void reconstruction_loss_kernel(float* d_reconstruction,      // (B, H, W, C), or null
                                           float* block_sums,            // (grid)
                                           const float* reconstruction,  // (B, H, W, C)
                                           const float* target,          // (B, H, W, C)
                                           int64_t terms, Extent extent) {
  VQ_SHARED(float, block_terms, [kSumBlock]);
  VQ_SHARED(float, lanes, [kSumLanes]);
  const int64_t begin = int64_t(blockIdx.x) * kSumBlock, end = min(terms, begin + kSumBlock);
  write_terms<kWidth>(block_terms, d_reconstruction, reconstruction, target, begin, end, extent);
  const float sum = add_terms(block_terms, end - begin, lanes);
  if (threadIdx.x == 0) block_sums[blockIdx.x] = sum;
}

__global__ void finish_loss_kernel(float* loss,              // (1)
                                   float* error,             // (1)
                                   const float* block_sums,  // (blocks)
                                   int64_t blocks, float counted, float scale) {
  VQ_SHARED(float, lanes, [kSumLanes]);
  const float sum = finish_block_sums(block_sums, blocks, lanes);
  if (threadIdx.x != 0) return;
  *error = sum / counted;
  *loss = scale * (sum / counted);
}

// A block adds the blocks of one image in order.
template <int kWidth>
__global__ void squared_error_kernel(float* squared_error,         // (B)
                                     const float* reconstruction,  // (B, H, W, C)
                                     const float* target,          // (B, H, W, C)
                                     int64_t image_terms, Extent extent) {
  VQ_SHARED(float, block_terms, [kSumBlock]);
  VQ_SHARED(float, lanes, [kSumLanes]);
  const int64_t image_end = (blockIdx.x + 1) * image_terms;
  float sum = 0.0f;
  for (int64_t begin = image_end - image_terms; begin < image_end; begin += kSumBlock) {
    const int64_t end = min(image_end, begin + kSumBlock);
    // The barrier in add_lanes lies between the last reads of block_terms and these writes, the one in
    // add_terms between the last reads of the lanes and their next writes.
    write_terms<kWidth>(block_terms, nullptr, reconstruction, target, begin, end, extent);
    sum += add_terms(block_terms, end - begin, lanes);
  }
  if (threadIdx.x == 0) squared_error[blockIdx.x] = sum;
}

// The same from the block sums of the batch, where no block reaches into a second image.
__global__ void image_sums_kernel(float* squared_error,     // (B)
                                  const float* block_sums,  // (B * image_blocks)
                                  int64_t B, int64_t image_blocks) {
  const int64_t image = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (image >= B) return;
  float sum = 0.0f;
  for (int64_t i = 0; i < image_blocks; ++i) sum += block_sums[image * image_blocks + i];
  squared_error[image] = sum;
}

template <int kWidth>
void launch_loss(const ReconstructionLossOp& op, const Extent& extent, Stream stream) {
  const int64_t B = op.target[0], image_terms = op.target[1] * op.target[2] * op.channels;
  const int64_t terms = B * image_terms, blocks = sum_blocks(terms);
  const float counted = float(B * op.height * op.width * op.channels);
  launch("reconstruction_loss", reconstruction_loss_kernel<kWidth>, {unsigned(blocks), kSumThreads}, stream,
         op.d_reconstruction.data, op.block_sums.data, op.reconstruction.data, op.target.data, terms, extent);
  launch("finish_loss", finish_loss_kernel, {1, kSumThreads}, stream, op.loss.data, op.error.data,
         op.block_sums.data, blocks, counted, op.scale);
  if (extent.squared && image_terms % kSumBlock == 0)
    return launch("image_sums", image_sums_kernel, {unsigned((B - 1) / kSumLanes + 1), kSumThreads}, stream,
                  op.squared_error.data, op.block_sums.data, B, image_terms / kSumBlock);
  Extent squared = extent;
  squared.squared = true;
  launch("squared_error", squared_error_kernel<kWidth>, {unsigned(B), kSumThreads}, stream,
         op.squared_error.data, op.reconstruction.data, op.target.data, image_terms, squared);
}

}  // namespace

void run_cuda(const ReconstructionLossOp& op, Stream stream) {
  const auto size = [](int64_t value) { return size_in_32_bits("reconstruction loss", value); };
  const bool squared = op.kind == ReconstructionKind::squared;
  const float counted = float(op.target[0] * op.height * op.width * op.channels);
  const Extent extent{size(op.target[1]),
                      size(op.target[2]),
                      size(op.target[3]),
                      size(op.height),
                      size(op.width),
                      size(op.channels),
                      squared,
                      (squared ? 2.0f : 1.0f) * op.scale / counted};
  if (extent.C % 4 == 0 &&
      aligned_to_16_bytes(op.d_reconstruction.data, op.reconstruction.data, op.target.data))
    launch_loss<4>(op, extent, stream);
  else
    launch_loss<1>(op, extent, stream);
}

}  // namespace vqlab
