// Count and vector sum of the latents of each code: what both EMA updates and codebook gradients need
// (van den Oord et al. 2017, appendix A.1).
#pragma once

#include <span>
#include <string_view>

#include "../core/op.hpp"

namespace vqlab {

struct ClusterSumsVariant;

// Rows are sorted by code (stable). The rows of one code are cut into chunks of kClusterChunk; a chunk is
// added in row order, the chunks in chunk order: equal bits on every device and for any number of threads.
inline constexpr int64_t kClusterChunk = 128;

// counts[k] = n_k, the number of latents with code k; sums[k] = S_k, their sum; 0 for a code without latents.
struct ClusterSumsOp {
  View<int32_t> counts;                         // (K)
  View<float> sums;                             // (K, D)
  View<const float> latents;                    // (N, D)
  View<const int32_t> codes;                    // (N), in [0, K)
  View<std::byte> scratch;                      // at least cluster_sums_scratch_bytes(device, N, K, D)
  const ClusterSumsVariant* variant = nullptr;  // null: the device's first variant that supports the shape

  // Throws Error(failed) on shapes that disagree, or a variant that does not support the shape. Too little
  // scratch and a variant of the other device are found by run().
  void check() const;
};

// Enough for every variant of the device at this shape.
int64_t cluster_sums_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D);

// One implementation: an entry of cluster_sums_variants.def and a file cluster_sums_variants/<name>.cpp (CPU)
// or .cu (CUDA).
struct ClusterSumsVariant {
  std::string_view name;
  Device device;
  std::string_view idea;  // one line for `compare --list`
  bool exact;             // true: the bits of the definition above; false: some other order of the same sums
  bool (*supports)(int64_t N, int64_t K, int64_t D);  // machine and shape; never by luck
  int64_t (*scratch_bytes)(int64_t N, int64_t K, int64_t D);
  void (*run)(const ClusterSumsOp& op, Stream stream);
};

// The variants of a device in order of preference; the first is exact and supports every shape. None for CUDA
// in a build without it.
std::span<const ClusterSumsVariant* const> cluster_sums_variants(Device device);

// By name, or Error(usage) with the nearest valid name.
const ClusterSumsVariant& find_cluster_sums_variant(Device device, std::string_view name);

void run_cpu(const ClusterSumsOp& op);
void run_cuda(const ClusterSumsOp& op, Stream stream);

}  // namespace vqlab
