#include "lookup.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "../core/names.hpp"

namespace vqlab {

#define VQ_CUDA_VARIANT(name)  // the table of the CPU
#define VQ_CPU_VARIANT(name) extern const LookupVariant lookup_##name;
#include "lookup_variants.def"
#undef VQ_CPU_VARIANT

namespace {

constexpr const LookupVariant* kVariants[] = {
#define VQ_CPU_VARIANT(name) &lookup_##name,
#include "lookup_variants.def"
#undef VQ_CPU_VARIANT
};

const LookupVariant& choose_variant(const LookupOp& op) {
  if (op.variant) return *op.variant;
  const auto fits = [&](const LookupVariant* v) {
    return v->supports(op.latents[0], op.codebook[0], op.latents[1]);
  };
  return **std::find_if(std::begin(kVariants), std::end(kVariants) - 1, fits);
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
  VQ_REQUIRE(scratch.size() >= lookup_scratch_bytes(N, K, D),
             "lookup: {} bytes of scratch, {} needed for latents {} and codebook {}", scratch.size(),
             lookup_scratch_bytes(N, K, D), latents.shape(), codebook.shape());
  VQ_REQUIRE(variant == nullptr || variant->supports(N, K, D),
             "lookup: variant {} does not support latents {} and codebook {}", variant->name, latents.shape(),
             codebook.shape());
}

int64_t lookup_scratch_bytes(int64_t N, int64_t K, int64_t D) {
  int64_t bytes = 0;
  for (const LookupVariant* variant : kVariants)
    if (variant->supports(N, K, D)) bytes = std::max(bytes, variant->scratch_bytes(N, K, D));
  return bytes;
}

std::span<const LookupVariant* const> lookup_variants() { return kVariants; }

const LookupVariant& find_lookup_variant(std::string_view name) {
  std::vector<std::string_view> names;
  for (const LookupVariant* variant : kVariants) {
    if (variant->name == name) return *variant;
    names.push_back(variant->name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(ErrorKind::usage, fmt::format("unknown lookup variant '{}'", name),
              near.empty() ? "`vqlab compare --list` shows all"
                           : fmt::format("did you mean '{}'? `vqlab compare --list` shows all", near),
              "--variant");
}

void run_cpu(const LookupOp& op) { choose_variant(op).run(op, Stream{}); }

}  // namespace vqlab
