#include "lookup.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "../core/names.hpp"

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

void run_variant(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.latents[1];
  require_scratch("lookup", op.scratch, lookup_scratch_bytes(stream.device, N, K, D));
  const LookupVariant* chosen = op.variant;
  for (const LookupVariant* variant : lookup_variants(stream.device))
    if (chosen == nullptr && variant->supports(N, K, D)) chosen = variant;
  VQ_REQUIRE(chosen != nullptr && chosen->device == stream.device,
             "lookup: no variant of this device for latents {} and codebook {}", op.latents.shape(),
             op.codebook.shape());
  chosen->run(op, stream);
}

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
  int64_t bytes = 0;
  for (const LookupVariant* variant : lookup_variants(device))
    if (variant->supports(N, K, D)) bytes = std::max(bytes, variant->scratch_bytes(N, K, D));
  return bytes;
}

std::span<const LookupVariant* const> lookup_variants(Device device) {
#if VQ_CUDA
  if (device == Device::cuda) return kCudaVariants;
#endif
  if (device == Device::cuda) return {};
  return kCpuVariants;
}

const LookupVariant& find_lookup_variant(Device device, std::string_view name) {
  std::vector<std::string_view> names;
  for (const LookupVariant* variant : lookup_variants(device)) {
    if (variant->name == name) return *variant;
    names.push_back(variant->name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(ErrorKind::usage, fmt::format("unknown lookup variant '{}'", name),
              near.empty() ? "`vqlab compare --list` shows all"
                           : fmt::format("did you mean '{}'? `vqlab compare --list` shows all", near),
              "--variant");
}

void run_cpu(const LookupOp& op) { run_variant(op, Stream{}); }

#if VQ_CUDA
void run_cuda(const LookupOp& op, Stream stream) { run_variant(op, stream); }
#endif

}  // namespace vqlab
