// Nearest code of each latent (van den Oord et al. 2017, section 3.1).
#pragma once

#include "../core/variants.hpp"

namespace vqlab {

struct LookupOp;
using LookupVariant = Variant<LookupOp>;  // exact: equals score64's choice on every row

// codes[n] = the smallest k that minimises score64(latents[n], codebook[k]).
// A row with a NaN or an infinity gets code 0, and the first such row is reported; nothing is thrown.
struct LookupOp {
  View<int32_t> codes;          // (N), in [0, K)
  View<int32_t> first_bad_row;  // (1), smallest n whose latent is not finite, or -1
  View<const float> latents;    // (N, D)
  View<const float> codebook;   // (K, D), finite
  View<std::byte> scratch;      // at least lookup_scratch_bytes(device, N, K, D); undefined before and after
  const LookupVariant* variant = nullptr;  // null: the device's first variant that supports the shape

  // Throws Error(failed) on shapes that disagree, N, K or D < 1, K or N > 2^31 - 1, or a variant that does
  // not support the shape. Too little scratch and a variant of the other device are found by run().
  void check() const;
  OpCost cost() const {
    return {.bytes = operand_bytes(*this), .flop = 2.0 * double(latents.size()) * double(codebook[0])};
  }
};

// Enough for every variant of the device at this shape.
int64_t lookup_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D);

// The variants of a device in order of preference; the last supports every shape. None for CUDA in a build
// without it.
VariantTable<LookupOp> lookup_variants(Device device);

// By name, or Error(usage) with the nearest valid name.
const LookupVariant& find_lookup_variant(Device device, std::string_view name);

void run_cpu(const LookupOp& op);
void run_cuda(const LookupOp& op, Stream stream);

}  // namespace vqlab
