// What ops with several implementations share. Each such op has a table <op>_variants.def, a list of names
// for each device in order of preference; the entry of a name stands in the variant's own file.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "names.hpp"
#include "op.hpp"

namespace vqlab {

// One implementation of an op on latents (N, D) and K codes.
template <class Op>
struct Variant {
  std::string_view name;
  Device device;
  std::string_view idea;  // one line for `compare --list`
  bool exact;             // what that means, the op says; false: labelled approximate
  bool (*supports)(int64_t N, int64_t K, int64_t D);  // machine and shape; never by luck
  int64_t (*scratch_bytes)(int64_t N, int64_t K, int64_t D);
  void (*run)(const Op& op, Stream stream);
  bool reproducible = true;  // the same bits in every run
};

// The variants of one device.
template <class Op>
using VariantTable = std::span<const Variant<Op>* const>;

// Enough for every variant at this shape.
template <class Op>
int64_t most_scratch_bytes(VariantTable<Op> table, int64_t N, int64_t K, int64_t D) {
  int64_t bytes = 0;
  for (const Variant<Op>* variant : table)
    if (variant->supports(N, K, D)) bytes = std::max(bytes, variant->scratch_bytes(N, K, D));
  return bytes;
}

// By name, or Error(usage) with the nearest valid name; `where` is what the user wrote it in.
template <class Op>
const Variant<Op>& named_variant(const char* op, VariantTable<Op> table, std::string_view name,
                                 const std::string& where = "--variant") {
  std::vector<std::string_view> names;
  for (const Variant<Op>* variant : table) {
    if (variant->name == name) return *variant;
    names.push_back(variant->name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(ErrorKind::usage, fmt::format("unknown {} variant '{}'", op, name),
              fmt::format("{}`vqlab compare --op {} --list` shows all",
                          near.empty() ? "" : fmt::format("did you mean '{}'? ", near), op),
              where);
}

// Runs the op's own variant, or else the first that supports the shape. Throws Error(failed) on too little
// scratch, and if there is none or it is of the other device.
template <class Op>
void run_variant(const char* name, const Op& op, VariantTable<Op> table, int64_t N, int64_t K, int64_t D,
                 Stream stream) {
  require_scratch(name, op.scratch, most_scratch_bytes(table, N, K, D));
  const Variant<Op>* chosen = op.variant;
  for (const Variant<Op>* variant : table)
    if (chosen == nullptr && variant->supports(N, K, D)) chosen = variant;
  VQ_REQUIRE(chosen != nullptr && chosen->device == stream.device,
             "{}: no variant of this device for N = {}, K = {}, D = {}", name, N, K, D);
  chosen->run(op, stream);
}

}  // namespace vqlab
