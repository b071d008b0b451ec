// The device half of tree_sum.hpp: a block of kSumLanes threads, each a lane, adds to the bits of lane_sum.
#pragma once

#include "cuda.hpp"
#include "tree_sum.hpp"

namespace vqlab {

inline constexpr unsigned kSumThreads = unsigned(kSumLanes);

// What this thread's lane of lane_sum(begin, end, term) holds before the lanes are added.
template <class Term>
__device__ float lane_of_terms(int64_t begin, int64_t end, const Term& term) {
  float lane = 0.0f;
  if (end - begin == kSumBlock) {  // a constant number of rows: all loads are in flight at once
    for (int row = 0; row < int(kSumBlock / kSumLanes); ++row)
      lane += term(begin + row * kSumLanes + threadIdx.x);
  } else {
    for (int64_t i = begin + threadIdx.x; i < end; i += kSumLanes) lane += term(i);
  }
  return lane;
}

// Adds one value of each thread of the block, pairwise as lane_sum adds its lanes; the sum is returned to
// thread 0, others get a value without meaning. `lanes` (kSumLanes) lies in shared memory; between two calls
// that share it there is one more barrier.
template <class T>
__device__ T add_lanes(T lane, T* lanes) {
  constexpr int kWarp = 32, kRows = int(kSumLanes) / kWarp;
  lanes[threadIdx.x] = lane;
  __syncthreads();  // every lane is stored before the first warp adds them
  if (threadIdx.x >= kWarp) return lane;
  T row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = lanes[r * kWarp + threadIdx.x];
  for (int half = kRows / 2; half > 0; half /= 2)
    for (int r = 0; r < half; ++r) row[r] += row[r + half];
  for (int half = kWarp / 2; half > 0; half /= 2) row[0] += __shfl_down_sync(0xffffffffu, row[0], half);
  return row[0];
}

// The same sum, returned to every thread; `lanes` may be used again at once.
template <class T>
__device__ T add_lanes_for_all(T lane, T* lanes) {
  const T sum = add_lanes(lane, lanes);
  if (threadIdx.x == 0) lanes[0] = sum;  // only this thread has read lanes[0]
  __syncthreads();                       // the sum is stored before the threads read it
  const T result = lanes[0];
  __syncthreads();  // every thread has read the sum before `lanes` is written again
  return result;
}

// The bits of finish_sum in thread 0 of the block, for any number of block sums.
__device__ inline float finish_block_sums(const float* block_sums, int64_t blocks, float* lanes) {
  return add_lanes(lane_of_terms(0, blocks, [=](int64_t i) { return block_sums[i]; }), lanes);
}

}  // namespace vqlab
