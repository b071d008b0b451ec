// Rows scaled to length 1: what a codebook on the unit sphere compares.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// A row shorter than this is divided by it instead of by its length, and gets no gradient: it has no
// direction.
inline constexpr double kMinimumLength = 1e-12;

// output[n] = input[n] / max(||input[n]||, kMinimumLength); lengths and quotients in double. A row that is
// not finite becomes NaN somewhere.
struct UnitRowsOp {
  View<float> output;            // (N, D); may alias input
  View<const float> input;       // (N, D)
  View<const int32_t> poisoned;  // (1), not 0: nothing changes; or absent

  // Throws Error(failed) on shapes that disagree.
  void check() const;
};

// d_input = (G - (G.u) u) / ||input||, G = d_output and u the unit row: only what turns a row passes.
struct UnitRowsBackwardOp {
  View<float> d_input;         // (N, D); may alias d_output
  View<const float> d_output;  // (N, D)
  View<const float> input;     // (N, D), of the forward pass

  void check() const;
};

void run_cpu(const UnitRowsOp& op);
void run_cuda(const UnitRowsOp& op, Stream stream);
void run_cpu(const UnitRowsBackwardOp& op);
void run_cuda(const UnitRowsBackwardOp& op, Stream stream);

}  // namespace vqlab
