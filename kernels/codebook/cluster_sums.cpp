#include "cluster_sums.hpp"

#include <limits>

#include "cluster_chunks.hpp"
#include "straight_through.hpp"

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
  const bool quantizes = bool(quantized);
  VQ_REQUIRE(bool(distance) == quantizes && bool(codebook) == quantizes,
             "cluster_sums: quantized {}, distance {} and codebook {} go together", quantized.shape(),
             distance.shape(), codebook.shape());
  VQ_REQUIRE(
      !quantizes || (same_shape(quantized, latents) && same_shape(codebook, sums) && distance.size() == 1),
      "cluster_sums: quantized {}, distance {} or codebook {} does not fit latents {} and sums {}",
      quantized.shape(), distance.shape(), codebook.shape(), latents.shape(), sums.shape());
  VQ_REQUIRE(variant == nullptr || variant->supports(latents[0], sums[0], latents[1]),
             "cluster_sums: variant {} does not support latents {} and sums {}", variant->name,
             latents.shape(), sums.shape());
}

int64_t cluster_sums_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D) {
  return most_scratch_bytes(cluster_sums_variants(device), N, K, D);
}

VariantTable<ClusterSumsOp> cluster_sums_variants(Device device) {
#if VQ_CUDA
  if (device == Device::cuda) return kCudaVariants;
#endif
  if (device == Device::cuda) return {};
  return kCpuVariants;
}

void quantize_beside(const ClusterSumsOp& op, float* block_sums, Stream stream) {
  if (!op.quantized) return;
  run(StraightThroughOp{.quantized = op.quantized,
                        .distance = op.distance,
                        .latents = op.latents,
                        .codebook = op.codebook,
                        .codes = op.codes,
                        .block_sums = {block_sums, {sum_blocks(op.latents.size())}}},
      stream);
}

const ClusterSumsVariant& find_cluster_sums_variant(Device device, std::string_view name) {
  return named_variant("cluster_sums", cluster_sums_variants(device), name);
}

void run_cpu(const ClusterSumsOp& op) {
  run_variant("cluster_sums", op, cluster_sums_variants(Device::cpu), op.latents[0], op.sums[0],
              op.latents[1], Stream{});
}

#if VQ_CUDA
void run_cuda(const ClusterSumsOp& op, Stream stream) {
  run_variant("cluster_sums", op, cluster_sums_variants(Device::cuda), op.latents[0], op.sums[0],
              op.latents[1], stream);
}
#endif

}  // namespace vqlab
