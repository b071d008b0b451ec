// Adam over the whole parameter slab, the gradient norm, the gate that keeps a bad step out of the weights,
// and their running average.
#pragma once

#include <cmath>

#include "../core/op.hpp"
#include "../core/step_state.hpp"
#include "../core/tree_sum.hpp"

namespace vqlab {

// squared_norm = sum of squares of all gradients.
struct GradientNormOp {
  View<float> squared_norm;     // (1)
  View<const float> gradients;  // (P)
  View<float> block_sums;       // scratch, at least sum_blocks(P)
  void check() const;           // all four throw Error(failed) on sizes that disagree
};

// poisoned = 1 if a loss or the gradient norm is not finite or a latent row is bad, else 0, and the
// optimiser's state counts the step as skipped or as an update. While it is set, AdamOp, EmaUpdateOp,
// RestartOp and all running averages change nothing, so the last good state survives. The `halt_after`-th bad
// step in a row ends the run: it is not counted, halted_at becomes its number, and from then on every step is
// poisoned and nothing is counted.
struct PoisonGateOp {
  View<int32_t> poisoned;             // (1)
  View<OptimizerState> optimizer;     // (1), updated
  View<const float> loss;             // (1)
  View<const float> squared_norm;     // (1)
  View<const int32_t> first_bad_row;  // (1), -1 = none; or absent (no quantizer)
  View<const StepState> state;        // (1)
  double beta1, beta2;                // of Adam
  int64_t halt_after;                 // >= 1
  void check() const;
};

// Adam (Kingma and Ba 2015, algorithm 1) in one pass:
//   g = gradient * min(1, clip / ||gradient||);  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   weight -= learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
// before which, with weight decay, weight -= learning_rate * weight_decay * weight (AdamW; Loshchilov and
// Hutter 2019).
struct AdamOp {
  View<float> weights, moment1, moment2;  // (P)
  View<const float> gradients;            // (P)
  View<const StepState> state;            // (1)
  View<const OptimizerState> optimizer;   // (1), this update counted
  View<const float> squared_norm;         // (1)
  View<const int32_t> poisoned;           // (1)
  float beta1, beta2, epsilon;            // 0.9, 0.999, 1e-8
  float clip;                             // largest gradient norm; 0 = off
  float weight_decay;                     // >= 0; 0 = off
  View<const uint8_t> decayed;            // (decay_groups(P)), 0: these weights do not decay; absent if off
  void check() const;
  OpCost cost() const {
    return {.bytes = operand_bytes(*this) + 3.0 * double(weights.bytes())};
  }  // read and written
};

// Weights that share one element of `decayed`.
inline constexpr int64_t kDecayGroup = 64;
constexpr int64_t decay_groups(int64_t weights) { return (weights + kDecayGroup - 1) / kDecayGroup; }

// What all weights of a step have in common.
struct AdamFactors {
  float gradient_scale;  // of the clip
  float rate1;           // learning_rate / (1 - beta1^t)
  float correction2;     // 1 / (1 - beta2^t)
  float decay;           // learning_rate * weight_decay
};
VQ_HOST_DEVICE inline AdamFactors adam_factors(const StepState& state, const OptimizerState& optimizer,
                                               float squared_norm, float clip, float weight_decay) {
  const float norm = std::sqrt(squared_norm);
  return {.gradient_scale = clip > 0.0f && norm > clip ? clip / norm : 1.0f,
          .rate1 = state.learning_rate / (1.0f - float(optimizer.beta1_power)),
          .correction2 = 1.0f / (1.0f - float(optimizer.beta2_power)),
          .decay = state.learning_rate * weight_decay};
}

// averages = d * averages + (1 - d) * weights, d = min(decay, (1 + updates) / (10 + updates)): young averages
// follow closely.
struct AverageWeightsOp {
  View<float> averages;                  // (P), updated
  View<const float> weights;             // (P)
  View<const OptimizerState> optimizer;  // (1), this update counted
  View<const int32_t> poisoned;          // (1)
  float decay;                           // in [0, 1)
  void check() const;
  OpCost cost() const {
    return {.bytes = operand_bytes(*this) + double(averages.bytes())};
  }  // read and written
};
VQ_HOST_DEVICE inline float average_decay(const OptimizerState& optimizer, float decay) {
  const float young = float(1 + optimizer.updates) / float(10 + optimizer.updates);
  return young < decay ? young : decay;
}

void run_cpu(const GradientNormOp& op);
void run_cuda(const GradientNormOp& op, Stream stream);
void run_cpu(const PoisonGateOp& op);
void run_cuda(const PoisonGateOp& op, Stream stream);
void run_cpu(const AdamOp& op);
void run_cuda(const AdamOp& op, Stream stream);
void run_cpu(const AverageWeightsOp& op);
void run_cuda(const AverageWeightsOp& op, Stream stream);

}  // namespace vqlab
