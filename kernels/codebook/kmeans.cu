// Lloyd's rounds on the device, to the bits of kmeans.cpp: the lookup and the cluster sums are the ops of
// these names, here are the choice of K distinct latents, the means and the final sizes.
// Mapping: a thread owns one element of a code, neighbouring threads neighbouring dimensions.
// Traffic: 2 * K * D floats per kernel. Shared memory: none. Needs: nothing; any size and alignment to 4
// bytes. Ran on an H200; not timed.
#include "kmeans.hpp"

#include <algorithm>

#include "../core/cuda.hpp"
#include "../core/grid.hpp"
#include "cluster_sums.hpp"
#include "lookup.hpp"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256;

// codebook[k] = latents[permutation(k % N)].
__global__ void __launch_bounds__(kBlock)
    pick_rows_kernel(float* codebook /*(K, D)*/, const float* latents /*(N, D)*/, RandomKey key, int64_t N,
                     int64_t K, int64_t D) {
  const Permutation rows(key, uint64_t(N));
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < K * D; i += stride)
    codebook[i] = latents[int64_t(rows(uint64_t(i / D % N))) * D + i % D];
}

// codebook[k] = sums[k] / counts[k]; an empty cluster keeps its place.
__global__ void __launch_bounds__(kBlock)
    cluster_means_kernel(float* codebook /*(K, D)*/, const float* sums /*(K, D)*/,
                         const int32_t* counts /*(K)*/, int64_t K, int64_t D) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < K * D; i += stride)
    if (const int32_t count = counts[i / D]; count > 0) codebook[i] = sums[i] / float(count);
}

// What the averages of a training step start as.
__global__ void __launch_bounds__(kBlock)
    cluster_sizes_kernel(float* cluster_size /*(K)*/, float* cluster_sum /*(K, D)*/,
                         const float* codebook /*(K, D)*/, const int32_t* counts /*(K)*/, int64_t K,
                         int64_t D, float count_scale) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < K * D; i += stride) {
    const float size = count_scale * float(counts[i / D]);
    if (i % D == 0) cluster_size[i / D] = size;
    cluster_sum[i] = size * codebook[i];
  }
}

}  // namespace

void run_cuda(const KMeansOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const KMeansScratch scratch(op, Device::cuda);
  const LaunchShape shape(elementwise_grid(K * D, kBlock), unsigned(kBlock));
  launch("pick_rows", pick_rows_kernel, shape, stream, op.codebook.data, op.latents.data, op.key, N, K, D);
  for (int round = 0; round < op.rounds; ++round) {
    run(LookupOp{scratch.codes, op.first_bad_row, op.latents, op.codebook, scratch.work, op.lookup}, stream);
    run(ClusterSumsOp{scratch.counts, scratch.sums, op.latents, scratch.codes, scratch.work, op.cluster_sums},
        stream);
    launch("cluster_means", cluster_means_kernel, shape, stream, op.codebook.data, scratch.sums.data,
           scratch.counts.data, K, D);
  }
  launch("cluster_sizes", cluster_sizes_kernel, shape, stream, op.cluster_size.data, op.cluster_sum.data,
         op.codebook.data, scratch.counts.data, K, D, op.count_scale);
}

}  // namespace vqlab
