// The averages of counts and sums and the codebook from them; the gradient of the codebook loss.
// Mapping: a block owns as many codes as have about 1024 elements, at most 256; its threads first take a code
// each, then step over the elements of all its codes, which are consecutive in memory.
// Traffic per element: update 20 bytes, gradient 12; per code 12 and 4. The codebook is small beside latents.
// Shared memory: 1 KiB. Needs: D < 2^30. Measured on an H200, fmnist-s (N = 6272, K = 256, D = 16): 4.9 us.
#include "ema_update.hpp"

#include <algorithm>

#include "../core/cuda.hpp"
#include "../core/grid.hpp"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256;
constexpr int64_t kElementsPerBlock = 1024;

// Calls body(code of the block, element of the codebook) for the elements of this thread.
template <class Body>
__device__ void for_each_code_element(int64_t first_code, int64_t K, unsigned codes, unsigned D,
                                      const Body& body) {
  const int64_t elements = min(int64_t(codes), K - first_code) * D;
  for (int64_t i = threadIdx.x; i < elements; i += kBlock) {
    const unsigned code = codes == 1 ? 0 : unsigned(i) / D;  // with more codes, few elements
    body(code, first_code * D + i);
  }
}

__device__ float average(float before, float now, float decay) {
  return decay * before + (1.0f - decay) * now;
}

__global__ void ema_update_kernel(float* codebook,          // (K, D)
                                  float* cluster_size,      // (K)
                                  float* cluster_sum,       // (K, D)
                                  const int32_t* counts,    // (K)
                                  const float* sums,        // (K, D)
                                  const int32_t* poisoned,  // (1)
                                  int64_t K, unsigned D, unsigned codes, float decay) {
  VQ_SHARED(float, sizes, [kBlock]);
  if (*poisoned != 0) return;
  const int64_t first_code = int64_t(blockIdx.x) * codes, k = first_code + threadIdx.x;
  if (threadIdx.x < codes && k < K) {
    const float size = average(cluster_size[k], float(counts[k]), decay);
    cluster_size[k] = size;
    sizes[threadIdx.x] = size;
  }
  __syncthreads();  // the sizes of all codes of the block are known
  for_each_code_element(first_code, K, codes, D, [&](unsigned code, int64_t i) {
    const float sum = average(cluster_sum[i], sums[i], decay);
    cluster_sum[i] = sum;
    if (!(sizes[code] < kMinimumClusterSize)) codebook[i] = sum / sizes[code];
  });
}

__global__ void codebook_gradient_kernel(float* d_codebook,      // (K, D)
                                         const float* codebook,  // (K, D)
                                         const int32_t* counts,  // (K)
                                         const float* sums,      // (K, D)
                                         int64_t K, unsigned D, unsigned codes, float scale) {
  const int64_t first_code = int64_t(blockIdx.x) * codes;
  for_each_code_element(first_code, K, codes, D, [=](unsigned code, int64_t i) {
    d_codebook[i] = scale * (float(counts[first_code + code]) * codebook[i] - sums[i]);
  });
}

__global__ void average_counts_kernel(float* cluster_size,      // (K)
                                      const int32_t* counts,    // (K)
                                      const int32_t* poisoned,  // (1)
                                      int64_t K, float decay) {
  if (*poisoned != 0) return;
  for (int64_t k = int64_t(blockIdx.x) * kBlock + threadIdx.x; k < K; k += int64_t(gridDim.x) * kBlock)
    cluster_size[k] = average(cluster_size[k], float(counts[k]), decay);
}

unsigned codes_per_block(int64_t D) {
  return unsigned(std::clamp(kElementsPerBlock / D, int64_t(1), int64_t(kBlock)));
}

unsigned blocks_of_codes(int64_t K, unsigned codes) { return unsigned((K + codes - 1) / codes); }

}  // namespace

void run_cuda(const EmaUpdateOp& op, Stream stream) {
  const int64_t K = op.codebook[0];
  if (op.codebook.size() == 0) return;
  const unsigned D = size_in_32_bits("ema_update", op.codebook[1]), codes = codes_per_block(D);
  launch("ema_update", ema_update_kernel, {blocks_of_codes(K, codes), kBlock}, stream, op.codebook.data,
         op.cluster_size.data, op.cluster_sum.data, op.counts.data, op.sums.data, op.poisoned.data, K, D,
         codes, op.decay);
}

void run_cuda(const CodebookGradientOp& op, Stream stream) {
  const int64_t K = op.codebook[0];
  if (op.codebook.size() == 0) return;
  const unsigned D = size_in_32_bits("codebook_gradient", op.codebook[1]), codes = codes_per_block(D);
  launch("codebook_gradient", codebook_gradient_kernel, {blocks_of_codes(K, codes), kBlock}, stream,
         op.d_codebook.data, op.codebook.data, op.counts.data, op.sums.data, K, D, codes, op.scale);
}

void run_cuda(const AverageCountsOp& op, Stream stream) {
  const int64_t K = op.counts.size();
  if (K == 0) return;
  launch("average_counts", average_counts_kernel, {elementwise_grid(K, kBlock), kBlock}, stream,
         op.cluster_size.data, op.counts.data, op.poisoned.data, K, op.decay);
}

}  // namespace vqlab
