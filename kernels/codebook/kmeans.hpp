// k-means initialisation of a codebook (Lloyd's algorithm) from the first latents of a training run.
#pragma once

#include "../core/random.hpp"
#include "cluster_sums.hpp"
#include "lookup.hpp"

namespace vqlab {

// K distinct latents (with repetition if N < K), then `rounds` of: nearest code, mean; an empty cluster keeps
// its place. cluster_size and cluster_sum come out as the counts of the last assignment and the means times
// these counts.
struct KMeansOp {
  View<float> codebook;         // (K, D), out
  View<float> cluster_size;     // (K), out
  View<float> cluster_sum;      // (K, D), out
  View<int32_t> first_bad_row;  // (1), as in LookupOp
  View<const float> latents;    // (N, D)
  RandomKey key;                // use = kmeans
  int rounds;                   // >= 1
  float count_scale;        // > 0: latents of a training step / N makes the averages start as those of a step
  View<std::byte> scratch;  // kmeans_scratch_bytes(device, N, K, D)
  const LookupVariant* lookup = nullptr;  // null: the first that supports the shape
  const ClusterSumsVariant* cluster_sums = nullptr;

  // Throws Error(failed) on shapes that disagree; run() also on too little scratch.
  void check() const;
};

int64_t kmeans_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D);

// The scratch of a call, cut into its parts.
struct KMeansScratch {
  View<int32_t> codes;                               // (N)
  View<int32_t> counts;                              // (K)
  View<float> sums;                                  // (K, D)
  View<std::byte> work;                              // of the lookup and of the cluster sums
  KMeansScratch(const KMeansOp& op, Device device);  // throws Error(failed) on too little scratch
};

void run_cpu(const KMeansOp& op);
void run_cuda(const KMeansOp& op, Stream stream);

}  // namespace vqlab
