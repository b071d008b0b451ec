// Nearest code of each latent (van den Oord et al. 2017, section 3.1).
#pragma once

#include <span>
#include <string_view>

#include "../core/op.hpp"

namespace vqlab {

struct LookupVariant;

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
};

// Enough for every variant of the device at this shape.
int64_t lookup_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D);

// One implementation: an entry of lookup_variants.def and a file lookup_variants/<name>.cpp (CPU) or .cu
// (CUDA).
struct LookupVariant {
  std::string_view name;
  Device device;
  std::string_view idea;  // one line for `compare --list`
  bool exact;             // true: equals score64's choice on every row; false: labelled approximate
  bool (*supports)(int64_t N, int64_t K, int64_t D);  // machine and shape; never by luck
  int64_t (*scratch_bytes)(int64_t N, int64_t K, int64_t D);
  void (*run)(const LookupOp& op, Stream stream);
};

// The variants of a device in order of preference; the last supports every shape. None for CUDA in a build
// without it.
std::span<const LookupVariant* const> lookup_variants(Device device);

// By name, or Error(usage) with the nearest valid name.
const LookupVariant& find_lookup_variant(Device device, std::string_view name);

void run_cpu(const LookupOp& op);
void run_cuda(const LookupOp& op, Stream stream);

}  // namespace vqlab
