#include "lookup.hpp"

#include <limits>

namespace vqlab {

#define VQ_CPU_VARIANT(name) extern const LookupVariant lookup_##name;
#if VQ_CUDA
#define VQ_CUDA_VARIANT(name) extern const LookupVariant lookup_##name;
#else
#define VQ_CUDA_VARIANT(name)
#endif
#include "lookup_variants.def"
#undef VQ_CPU_VARIANT
#undef VQ_CUDA_VARIANT

namespace {

constexpr const LookupVariant* kCpuVariants[] = {
#define VQ_CPU_VARIANT(name) &lookup_##name,
#define VQ_CUDA_VARIANT(name)
#include "lookup_variants.def"
#undef VQ_CPU_VARIANT
#undef VQ_CUDA_VARIANT
};

#if VQ_CUDA
constexpr const LookupVariant* kCudaVariants[] = {
#define VQ_CPU_VARIANT(name)
#define VQ_CUDA_VARIANT(name) &lookup_##name,
#include "lookup_variants.def"
#undef VQ_CPU_VARIANT
#undef VQ_CUDA_VARIANT
};
#endif

}  // namespace

void LookupOp::check() const {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  VQ_REQUIRE(latents.rank == 2 && codebook.rank == 2 && latents[1] == codebook[1],
             "lookup: latents {} and codebook {} differ in D", latents.shape(), codebook.shape());
  const int64_t N = latents[0], K = codebook[0], D = latents[1];
  VQ_REQUIRE(N >= 1 && K >= 1 && D >= 1 && N <= kMost && K <= kMost,
             "lookup: latents {} and codebook {} need 1 <= N, K <= {} and D >= 1", latents.shape(),
             codebook.shape(), kMost);
  VQ_REQUIRE(codes.size() == N && first_bad_row.size() == 1,
             "lookup: codes {} or first_bad_row {} does not fit latents {}", codes.shape(),
             first_bad_row.shape(), latents.shape());
  VQ_REQUIRE(variant == nullptr || variant->supports(N, K, D),
             "lookup: variant {} does not support latents {} and codebook {}", variant->name, latents.shape(),
             codebook.shape());
}

int64_t lookup_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D) {
  return most_scratch_bytes(lookup_variants(device), N, K, D);
}

VariantTable<LookupOp> lookup_variants(Device device) {
#if VQ_CUDA
  if (device == Device::cuda) return kCudaVariants;
#endif
  if (device == Device::cuda) return {};
  return kCpuVariants;
}

const LookupVariant& find_lookup_variant(Device device, std::string_view name) {
  return named_variant("lookup", lookup_variants(device), name);
}

void run_cpu(const LookupOp& op) {
  run_variant("lookup", op, lookup_variants(Device::cpu), op.latents[0], op.codebook[0], op.latents[1],
              Stream{});
}

#if VQ_CUDA
void run_cuda(const LookupOp& op, Stream stream) {
  run_variant("lookup", op, lookup_variants(Device::cuda), op.latents[0], op.codebook[0], op.latents[1],
              stream);
}
#endif

}  // namespace vqlab
