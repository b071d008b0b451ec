// Count and vector sum of the latents of each code: what both EMA updates and codebook gradients need
// (van den Oord et al. 2017, appendix A.1).
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// Rows are sorted by code (stable). The rows of one code are cut into chunks of kClusterChunk; a chunk is
// added in row order, the chunks in chunk order: equal bits on every device and for any number of threads.
inline constexpr int64_t kClusterChunk = 128;

// counts[k] = n_k, the number of latents with code k; sums[k] = S_k, their sum; 0 for a code without latents.
struct ClusterSumsOp {
  View<int32_t> counts;       // (K)
  View<float> sums;           // (K, D)
  View<const float> latents;  // (N, D)
  View<const int32_t> codes;  // (N), in [0, K)
  View<std::byte> scratch;    // cluster_sums_scratch_bytes(N, K)

  // Throws Error(failed) on shapes that disagree or too little scratch.
  void check() const;
};

int64_t cluster_sums_scratch_bytes(int64_t N, int64_t K);

void run_cpu(const ClusterSumsOp& op);
void run_cuda(const ClusterSumsOp& op, Stream stream);

}  // namespace vqlab
