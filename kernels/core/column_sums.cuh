// The device half of column_sums.hpp: a block of kColumnBlock threads adds one slice of `width` columns.
#pragma once

#include "column_sums.hpp"
#include "cuda.hpp"

namespace vqlab {

// The thread's lane and column, in a grid of (slices, blocks of `width` columns).
struct ColumnThread {
  int lanes, lane;
  int64_t column;  // may lie behind the last one
  __device__ explicit ColumnThread(int width)
      : lanes(int(kColumnBlock) / width),
        lane(int(threadIdx.x) / width),
        column(int64_t(blockIdx.y) * width + int(threadIdx.x) % width) {}
};

// Adds the lanes of each column pairwise; the sum is returned to lane 0, others get a value without meaning.
// `lane_sums` (kColumnBlock) lies in shared memory and may be used again at once.
__device__ inline float add_column_lanes(float sum, float* lane_sums, const ColumnThread& at, int width) {
  lane_sums[threadIdx.x] = sum;
  __syncthreads();  // lane_sums, written by other lanes
  for (int half = at.lanes / 2; half > 0; half /= 2) {
    if (at.lane < half) lane_sums[threadIdx.x] += lane_sums[threadIdx.x + half * width];
    __syncthreads();  // lane_sums of the remaining lanes, before they are read by half as many
  }
  return lane_sums[threadIdx.x];  // which only this thread writes next
}

}  // namespace vqlab
