// The r-th dead code, by code number, takes latent P(r); see restart.hpp.
// Mapping: first the rows: a block owns consecutive codes, counts the dead codes before them itself and ranks
// its own, 256 at a time, by ballots; a warp copies a row. Then the sizes, by one block, since the other
// blocks need all old ones. All blocks decide alike whether the step restarts at all.
// Traffic: 4 K bytes per block twice (from L2), and 12 to 20 bytes per element of a replaced code.
// Shared memory: 5 KiB, then 1 KiB. Needs: K < 2^30. Measured on an H200, fmnist-s (N = 6272, K = 256, D =
// 16): 2.2 + 2.4 us.
#include "restart.hpp"

#include <algorithm>

#include "../core/grid.hpp"
#include "../core/random.hpp"
#include "../core/tree_sum.cuh"

namespace vqlab {
namespace {

constexpr unsigned kBlock = kSumThreads, kWarp = 32, kWarps = kBlock / kWarp;
constexpr int64_t kMaxGrid = 128;

__device__ bool restarts(const StepState& state, int32_t poisoned, int64_t every) {
  return poisoned == 0 && (state.step + 1) % every == 0;
}

__device__ float mean_size(const float* cluster_size, int64_t K, float* lanes) {
  const float lane = lane_of_terms(0, K, [=](int64_t k) { return cluster_size[k]; });
  return add_lanes_for_all(lane, lanes) / float(K);
}

struct Rank {
  int before, total;  // set flags of the threads before this one, and of the block
};

__device__ Rank rank_flags(bool flag, int* warp_totals) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned set = __ballot_sync(0xffffffffu, flag);
  if (lane == 0) warp_totals[warp] = __popc(set);
  __syncthreads();  // the totals of all warps are stored
  Rank rank{__popc(set & ((1u << lane) - 1)), 0};
  for (unsigned w = 0; w < kWarps; ++w) {
    if (w < warp) rank.before += warp_totals[w];
    rank.total += warp_totals[w];
  }
  __syncthreads();  // every thread has read the totals before the next call stores its own
  return rank;
}

__global__ void restart_rows_kernel(float* codebook,            // (K, D)
                                    float* cluster_sum,         // (K, D), or null, as the moments
                                    float* moment1,             // (K, D)
                                    float* moment2,             // (K, D)
                                    const float* cluster_size,  // (K)
                                    const float* latents,       // (N, D)
                                    const StepState* state,     // (1)
                                    const int32_t* poisoned,    // (1)
                                    int64_t N, int64_t K, int64_t D, int64_t codes, float threshold,
                                    int64_t every, uint64_t seed) {
  VQ_SHARED(float, lanes, [kSumLanes]);
  VQ_SHARED(int, counts, [kSumLanes]);
  VQ_SHARED(int, warp_totals, [kWarps]);
  VQ_SHARED(int64_t, rows, [kBlock]);
  VQ_SHARED(int, dead_codes, [kBlock]);
  if (!restarts(*state, *poisoned, every)) return;
  const float mean = mean_size(cluster_size, K, lanes), limit = threshold * mean;
  const int64_t first = blockIdx.x * codes, last = min(K, first + codes);
  int dead_before = 0;
  for (int64_t k = threadIdx.x; k < first; k += kBlock) dead_before += cluster_size[k] < limit;
  int64_t rank = add_lanes_for_all(dead_before, counts);
  const Permutation permutation(
      {.seed = seed, .step = uint32_t(state->step), .use = RandomUse::restart, .tensor = 0}, uint64_t(N));
  for (int64_t start = first; start < last && rank < N; start += kBlock) {
    const int64_t k = start + threadIdx.x;
    const bool dead = k < last && cluster_size[k] < limit;
    const Rank in_block = rank_flags(dead, warp_totals);
    if (dead && rank + in_block.before < N) {
      rows[in_block.before] = int64_t(permutation(uint64_t(rank + in_block.before)));
      dead_codes[in_block.before] = int(k);
    }
    __syncthreads();  // the list is complete; the barriers of rank_flags keep it until all have read it
    const int taken = int(min(int64_t(in_block.total), N - rank));
    for (int i = int(threadIdx.x / kWarp); i < taken; i += kWarps) {
      const int64_t to = dead_codes[i] * D, from = rows[i] * D;
      for (int64_t d = threadIdx.x % kWarp; d < D; d += kWarp) {
        const float value = latents[from + d];
        codebook[to + d] = value;
        if (cluster_sum != nullptr) cluster_sum[to + d] = mean * value;
        if (moment1 != nullptr) moment1[to + d] = 0.0f;
        if (moment2 != nullptr) moment2[to + d] = 0.0f;
      }
    }
    rank += in_block.total;
  }
}

__global__ void restart_sizes_kernel(float* cluster_size,      // (K)
                                     int32_t* replaced,        // (1)
                                     const StepState* state,   // (1)
                                     const int32_t* poisoned,  // (1)
                                     int64_t N, int64_t K, float threshold, int64_t every) {
  VQ_SHARED(float, lanes, [kSumLanes]);
  VQ_SHARED(int, warp_totals, [kWarps]);
  int64_t rank = 0;
  if (threshold != 0.0f && restarts(*state, *poisoned, every)) {
    const float mean = mean_size(cluster_size, K, lanes), limit = threshold * mean;
    for (int64_t start = 0; start < K && rank < N; start += kBlock) {
      const int64_t k = start + threadIdx.x;
      const bool dead = k < K && cluster_size[k] < limit;
      const Rank in_block = rank_flags(dead, warp_totals);
      if (dead && rank + in_block.before < N) cluster_size[k] = mean;
      rank += in_block.total;
    }
  }
  if (threadIdx.x == 0) *replaced = int32_t(min(rank, N));
}

}  // namespace

void run_cuda(const RestartOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  size_in_32_bits("restart", K);
  if (op.threshold != 0.0f && K > 0) {
    const int64_t pieces = (K + kBlock - 1) / kBlock, grid = std::min(kMaxGrid, pieces);
    const int64_t codes = (pieces + grid - 1) / grid * kBlock;
    launch("restart_rows", restart_rows_kernel, {unsigned((K + codes - 1) / codes), kBlock}, stream,
           op.codebook.data, op.cluster_sum.data, op.moment1.data, op.moment2.data, op.cluster_size.data,
           op.latents.data, op.state.data, op.poisoned.data, N, K, D, codes, op.threshold, op.every, op.seed);
  }
  launch("restart_sizes", restart_sizes_kernel, {1, kBlock}, stream, op.cluster_size.data, op.replaced.data,
         op.state.data, op.poisoned.data, N, K, op.threshold, op.every);
}

}  // namespace vqlab
