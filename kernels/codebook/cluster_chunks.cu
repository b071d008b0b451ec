// distance = the sum of the squares of all codes and tiles of dimensions, in the order of tree_sum.hpp, over
// the number of elements. Mapping: one block, a thread a lane of the sum. Traffic: K * D / 8 bytes.
// Shared memory: 1 KiB. Needs: nothing. Not yet run on a GPU.
#include "cluster_chunks.cuh"

#include "../core/tree_sum.cuh"

namespace vqlab {
namespace {

__global__ void cluster_distance_kernel(float* distance,       // (1)
                                        const float* squares,  // (count)
                                        int64_t count, float elements) {
  VQ_SHARED(float, lanes, [kSumLanes]);
  const float sum = finish_block_sums(squares, count, lanes);
  if (threadIdx.x == 0) *distance = sum / elements;
}

}  // namespace

void finish_cluster_distance(const ClusterSumsOp& op, const float* squares, Stream stream) {
  launch("cluster_distance", cluster_distance_kernel, {1, kSumThreads}, stream, op.distance.data, squares,
         op.sums[0] * cluster_tiles(op.sums[1]), float(op.latents.size()));
}

}  // namespace vqlab
