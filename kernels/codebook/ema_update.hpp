// The two ways a codebook learns: moving averages, or the gradient of the codebook loss.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// A code whose averaged count is below this keeps its place: dividing by less would only throw it far away.
inline constexpr float kMinimumClusterSize = 1e-3f;

// Exponential moving averages (van den Oord et al. 2017, appendix A.1), without smoothing and bias
// correction:
//   cluster_size = decay * cluster_size + (1 - decay) * counts,   cluster_sum likewise with sums
//   codebook[k] = cluster_sum[k] / cluster_size[k] where cluster_size[k] >= kMinimumClusterSize, else
//   unchanged
// Starting from cluster_size = 1, cluster_sum = codebook, an unused code stays where it is: both averages
// shrink alike.
struct EmaUpdateOp {
  View<float> codebook;          // (K, D), updated
  View<float> cluster_size;      // (K), updated
  View<float> cluster_sum;       // (K, D), updated
  View<const int32_t> counts;    // (K)
  View<const float> sums;        // (K, D)
  View<const int32_t> poisoned;  // (1), not 0: nothing changes
  float decay;                   // in [0, 1)

  // Throws Error(failed) on shapes that disagree or a decay out of range.
  void check() const;
  OpCost cost() const {  // the averages are read and written
    return {.bytes = operand_bytes(*this) + double(cluster_size.bytes() + cluster_sum.bytes())};
  }
};

// d_codebook[k] = scale * (n_k e_k - S_k), the gradient of the codebook loss mean ||sg(latent) - code||^2;
// scale = 2 * quantizer_weight * codebook_weight / (N * D).
struct CodebookGradientOp {
  View<float> d_codebook;      // (K, D)
  View<const float> codebook;  // (K, D)
  View<const int32_t> counts;  // (K)
  View<const float> sums;      // (K, D)
  float scale;

  void check() const;
};

// cluster_size = decay * cluster_size + (1 - decay) * counts, for the restart and the health of a codebook
// that learns by gradient.
struct AverageCountsOp {
  View<float> cluster_size;      // (K), updated
  View<const int32_t> counts;    // (K)
  View<const int32_t> poisoned;  // (1), not 0: nothing changes
  float decay;                   // in [0, 1)

  void check() const;
};

void run_cpu(const EmaUpdateOp& op);
void run_cuda(const EmaUpdateOp& op, Stream stream);
void run_cpu(const CodebookGradientOp& op);
void run_cuda(const CodebookGradientOp& op, Stream stream);
void run_cpu(const AverageCountsOp& op);
void run_cuda(const AverageCountsOp& op, Stream stream);

}  // namespace vqlab
