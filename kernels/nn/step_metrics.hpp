// What a step measured, kept on the device in a ring until the host reads it.
#pragma once

#include "../codebook/health.hpp"
#include "../core/op.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

// One step. What the net does not have stays at its default.
struct StepMetrics {
  int64_t step = 0;  // from 0
  float learning_rate = 0.0f;
  float reconstruction = 0.0f;  // the reconstruction loss, scaled as trained
  float error = 0.0f;           // the same mean without the scale
  float classification = 0.0f;  // the classifier's loss, weighted
  float squared_norm = 0.0f;    // of all gradients
  int32_t poisoned = 0;         // not 0: a value was not finite and the step changed nothing
  float distance = 0.0f;        // mean squared distance of latents and codes
  int32_t first_bad_row = -1;   // of the latents
  int32_t replaced = 0;         // codes restarted
  CodebookHealth health{};
};

// ring[step % R] = the metrics of this step.
struct RecordStepOp {
  View<StepMetrics> ring;             // (R)
  View<const StepState> state;        // (1)
  View<const float> reconstruction;   // (1)
  View<const float> error;            // (1)
  View<const float> classification;   // (1), or absent
  View<const float> squared_norm;     // (1)
  View<const int32_t> poisoned;       // (1)
  View<const float> distance;         // (1), or absent
  View<const int32_t> first_bad_row;  // (1), or absent
  View<const int32_t> replaced;       // (1), or absent
  View<const CodebookHealth> health;  // (1), or absent

  // Throws Error(failed) on sizes that disagree.
  void check() const;
};

void run_cpu(const RecordStepOp& op);
void run_cuda(const RecordStepOp& op, Stream stream);

}  // namespace vqlab
