// Count and vector sum of the latents of each code: what both EMA updates and codebook gradients need
// (van den Oord et al. 2017, appendix A.1); in the same pass over the latents, quantized latents and loss.
#pragma once

#include "../core/variants.hpp"

namespace vqlab {

struct ClusterSumsOp;
using ClusterSumsVariant = Variant<ClusterSumsOp>;  // exact: the bits of the definition below

// Rows are sorted by code (stable). The rows of one code are cut into chunks of kClusterChunk; a chunk is
// added in row order, the chunks in chunk order: equal bits on every device and for any number of threads.
inline constexpr int64_t kClusterChunk = 128;
// Squares (latent - code)^2 are added likewise, those of a chunk then over each kSquaresTile dimensions,
// neighbours pairwise; the results, code after code, as block sums are (core/tree_sum.hpp).
inline constexpr int64_t kSquaresTile = 32;

// counts[k] = n_k, the number of latents with code k; sums[k] = S_k, their sum; 0 for a code without latents.
//
// The sums of a variant that is not exact are off, beside the rounding of some order of addition (at most
// (n_k - 1) 2^-24 of the sum of absolute values), by at most 2^-27 of the largest absolute latent for each
// latent and 2^-24 of the sum.
struct ClusterSumsOp {
  View<int32_t> counts;                         // (K)
  View<float> sums;                             // (K, D)
  View<const float> latents;                    // (N, D)
  View<const int32_t> codes;                    // (N), in [0, K)
  View<std::byte> scratch;                      // at least cluster_sums_scratch_bytes(device, N, K, D)
  const ClusterSumsVariant* variant = nullptr;  // null: the device's first variant that supports the shape

  // All three or none: what StraightThroughOp gives, its distance but for the order of the sum.
  View<float> quantized = {};       // (N, D), codebook[codes[n]]; may not alias latents
  View<float> distance = {};        // (1), mean ||latent - code||^2 over all N * D elements
  View<const float> codebook = {};  // (K, D)

  // Throws Error(failed) on shapes that disagree, or a variant that does not support the shape. Too little
  // scratch and a variant of the other device are found by run().
  void check() const;
};

// Enough for every variant of the device at this shape.
int64_t cluster_sums_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D);

// The variants of a device in order of preference; an exact one supports every shape. None for CUDA in a
// build without it.
VariantTable<ClusterSumsOp> cluster_sums_variants(Device device);

// By name, or Error(usage) with the nearest valid name.
const ClusterSumsVariant& find_cluster_sums_variant(Device device, std::string_view name);

void run_cpu(const ClusterSumsOp& op);
void run_cuda(const ClusterSumsOp& op, Stream stream);

}  // namespace vqlab
