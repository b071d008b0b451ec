#include "cluster_sums.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "../core/names.hpp"

namespace vqlab {

#define VQ_CPU_VARIANT(name) extern const ClusterSumsVariant cluster_sums_##name;
#if VQ_CUDA
#define VQ_CUDA_VARIANT(name) extern const ClusterSumsVariant cluster_sums_##name;
#else
#define VQ_CUDA_VARIANT(name)
#endif
#include "cluster_sums_variants.def"
#undef VQ_CPU_VARIANT
#undef VQ_CUDA_VARIANT

namespace {

constexpr const ClusterSumsVariant* kCpuVariants[] = {
#define VQ_CPU_VARIANT(name) &cluster_sums_##name,
#define VQ_CUDA_VARIANT(name)
#include "cluster_sums_variants.def"
#undef VQ_CPU_VARIANT
#undef VQ_CUDA_VARIANT
};

#if VQ_CUDA
constexpr const ClusterSumsVariant* kCudaVariants[] = {
#define VQ_CPU_VARIANT(name)
#define VQ_CUDA_VARIANT(name) &cluster_sums_##name,
#include "cluster_sums_variants.def"
#undef VQ_CPU_VARIANT
#undef VQ_CUDA_VARIANT
};
#endif

void run_variant(const ClusterSumsOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1];
  require_scratch("cluster_sums", op.scratch, cluster_sums_scratch_bytes(stream.device, N, K, D));
  const ClusterSumsVariant* chosen = op.variant;
  for (const ClusterSumsVariant* variant : cluster_sums_variants(stream.device))
    if (chosen == nullptr && variant->supports(N, K, D)) chosen = variant;
  VQ_REQUIRE(chosen != nullptr && chosen->device == stream.device,
             "cluster_sums: no variant of this device for latents {} and sums {}", op.latents.shape(),
             op.sums.shape());
  chosen->run(op, stream);
}

}  // namespace

void ClusterSumsOp::check() const {
  VQ_REQUIRE(latents.rank == 2 && sums.rank == 2 && sums[1] == latents[1] && counts.size() == sums[0],
             "cluster_sums: latents {}, sums {} and counts {} disagree", latents.shape(), sums.shape(),
             counts.shape());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  VQ_REQUIRE(latents[0] <= kMost && sums[0] >= 1 && sums[0] < kMost,
             "cluster_sums: latents {} and sums {} need N and K up to {}", latents.shape(), sums.shape(),
             kMost);
  VQ_REQUIRE(codes.size() == latents[0], "cluster_sums: {} codes for latents {}", codes.size(),
             latents.shape());
  VQ_REQUIRE(variant == nullptr || variant->supports(latents[0], sums[0], latents[1]),
             "cluster_sums: variant {} does not support latents {} and sums {}", variant->name,
             latents.shape(), sums.shape());
}

int64_t cluster_sums_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D) {
  int64_t bytes = 0;
  for (const ClusterSumsVariant* variant : cluster_sums_variants(device))
    if (variant->supports(N, K, D)) bytes = std::max(bytes, variant->scratch_bytes(N, K, D));
  return bytes;
}

std::span<const ClusterSumsVariant* const> cluster_sums_variants(Device device) {
#if VQ_CUDA
  if (device == Device::cuda) return kCudaVariants;
#endif
  if (device == Device::cuda) return {};
  return kCpuVariants;
}

const ClusterSumsVariant& find_cluster_sums_variant(Device device, std::string_view name) {
  std::vector<std::string_view> names;
  for (const ClusterSumsVariant* variant : cluster_sums_variants(device)) {
    if (variant->name == name) return *variant;
    names.push_back(variant->name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(
      ErrorKind::usage, fmt::format("unknown cluster_sums variant '{}'", name),
      near.empty()
          ? "`vqlab compare --op cluster_sums --list` shows all"
          : fmt::format("did you mean '{}'? `vqlab compare --op cluster_sums --list` shows all", near),
      "--variant");
}

void run_cpu(const ClusterSumsOp& op) { run_variant(op, Stream{}); }

#if VQ_CUDA
void run_cuda(const ClusterSumsOp& op, Stream stream) { run_variant(op, stream); }
#endif

}  // namespace vqlab
