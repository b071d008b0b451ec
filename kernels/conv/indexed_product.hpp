// The two matrix products of a convolution. Their left matrix X, the patches of an image, is never formed:
// its element (r, k) is source[row_offset[r] + term_offset[k]]. Private to conv2d.cpp.
//
// Each element of a result is one sum in the order of its terms, by fused multiply-adds where the machine has
// them: its bits depend neither on the other rows nor on the width of the vectors.
#pragma once

#include <cstdint>

namespace vqlab {

// The right matrix lies in panels of 16 columns: (panels, terms, 16), the missing columns of the last one are
// 0.
inline constexpr int64_t kPanel = 16;
constexpr int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// `count` runs of `length` consecutive terms, `step` terms apart: those that a product reads of all its
// terms.
struct TermRuns {
  int64_t first, length, step, count;
};

// Offsets are in floats.
struct Patches {
  const float* source;
  const int32_t* row_offset;   // (rows)
  const int32_t* term_offset;  // (terms)
  int64_t rows, terms;
  TermRuns runs;
};

// output[output_offset[r] + n] = sum over the runs' k of X[r][k] * weight[k][n], plus bias[n], then max with
// 0 if relu (NaN stays).
struct PatchProduct {
  float* output;
  const int32_t* output_offset;  // (rows)
  Patches patches;
  const float* weight;  // (panels, terms, 16)
  const float* bias;    // (panels, 16)
  int64_t columns;
  bool relu;
};

// gradient[k][n] += sum over r of X[r][k] * right[right_offset[r] + n], for the runs' k.
struct PatchGradient {
  float* gradient;  // (panels, terms, 16)
  Patches patches;
  const float* right;
  const int32_t* right_offset;  // (rows)
  int64_t columns;              // a multiple of 16
};

void multiply(const PatchProduct& product);
void multiply(const PatchGradient& product);

}  // namespace vqlab
