// Verifies the variants of an op, then times them beside what the machine can do.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ceilings.hpp"
#include "kernels/core/launch_log.hpp"
#include "measure.hpp"
#include "variant_case.hpp"

namespace vqlab {

struct ComparisonOptions {
  double seconds = 5.0;  // time-out of the timing of one variant at one shape; 0: one sample
  bool hot = false;      // caches stay warm between samples
  bool timed = true;     // false: verify and repeat only
};

// One variant at one shape.
struct VariantResult {
  VariantInfo variant;
  VariantShape shape;
  // "UNSUPPORTED"; "WRONG" and "TOO SLOW", which are not timed; "MISTRUSTED": timed, but right on data in
  // which one code takes most of the rows.
  std::string status = "ok";
  int64_t wrong = 0, rows_checked = 0;
  bool deterministic = true;          // of variants that may be timed: two more runs gave the same bits
  std::optional<Timing> timing = {};  // the rest is of timed variants
  double gb_s = 0.0, tflop_s = 0.0;
  double copy_gb_s = 0.0, product_tflop_s = 0.0;  // ceilings among its samples; 0: the product is not known
  double share = 0.0;                        // of the ceiling that binds: product, where it is known, or copy
  std::vector<LaunchedKernel> kernels = {};  // of variants that ran at the shape, on a GPU
};

// Throws Error(usage) if the case does not fit into memory.
void require_memory_for(const VariantOp& op, const VariantShape& shape, const Runtime& runtime);

// All variants at one shape. `ceilings` is not read if nothing is timed.
std::vector<VariantResult> compare_variants(const VariantOp& op, const std::vector<VariantInfo>& variants,
                                            const VariantShape& shape, const Ceilings& ceilings,
                                            const ComparisonOptions& options, const Runtime& runtime);

}  // namespace vqlab
