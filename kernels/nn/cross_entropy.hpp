// The loss of a classifier.
#pragma once

#include "../core/op.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

// Softmax and cross-entropy with label smoothing (Szegedy et al. 2016) and mixup (Zhang et al. 2018). With m
// = mix and s = label_smoothing, row b has the target
//   t_b = m target(labels[b]) + (1 - m) target(labels[B - 1 - b]),
//   target(k) = (1 - s) onehot(k) + s / C, or 0 if k is -1: the row, or that part of it, has no label;
// loss = weight * sum_b sum_c -t_b[c] log probabilities[b][c] / n with the number n of labelled rows, which
// is the sum of all targets; 0 if there is none. d_logits is its gradient: 0 in rows whose target is 0,
// whatever their logits. NaN in another row's logits makes the loss NaN.
//
// In double, from portable functions: lane l of 32 adds the classes l, l + 32, ... in order, then the lanes
// are added pairwise; the losses of the rows are floats, added like one block of tree_sum.hpp.
struct CrossEntropyOp {
  View<float> d_logits;         // (B, C), or absent (evaluation)
  View<float> loss;             // (1)
  View<int32_t> correct;        // (B): 1 if the row's largest logit, the first of several, is that of its own
                                // label, 0 if not, -1 without a label; NaN is never the largest
  View<float> probabilities;    // (B, C), or absent
  View<const float> logits;     // (B, C), B and C >= 1, at most 2^20 rows
  View<const int32_t> labels;   // (B), in [0, C) or -1: no label, for which all other numbers are taken too
  View<const StepState> state;  // (1), of which `mix` in [0, 1] is used; or absent: 1
  float label_smoothing;        // in [0, 1)
  float weight;                 // > 0
  View<std::byte> scratch;      // at least cross_entropy_scratch_bytes(B), aligned to 8 bytes

  // Throws Error(failed) on shapes that disagree or a number out of range.
  void check() const;
};

int64_t cross_entropy_scratch_bytes(int64_t rows);

void run_cpu(const CrossEntropyOp& op);
void run_cuda(const CrossEntropyOp& op, Stream stream);

}  // namespace vqlab
