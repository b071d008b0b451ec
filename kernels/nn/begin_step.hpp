// The start of a step on the device: its scalars, and which images of a set that lies there are its batch.
#pragma once

#include "../core/op.hpp"
#include "../core/random.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

// The order in which an epoch takes the n images of a set: its i-th is image order(i).
VQ_HOST_DEVICE inline Permutation epoch_order(uint64_t seed, int64_t epoch, int64_t n) {
  return {{.seed = seed, .step = uint32_t(epoch), .use = RandomUse::order}, uint64_t(n)};
}

// state becomes that of the step after it, plan[(state.step + 1) % R]. With places also the batch: its b-th
// image is number epoch_order(first_index + b) of a set of n, and has that one's label, -1 if the set has
// none.
struct BeginStepOp {
  View<StepState> state;           // (1), of the step before: only its `step` counts, -1 in front of step 0
  View<int32_t> places;            // (B), in [0, n); or absent
  View<int32_t> labels;            // (B), or absent; only with places
  View<const StepState> plan;      // (R), step s at s % R
  View<const int32_t> set_labels;  // (n), or absent
  int64_t images = 0;              // n, from B to 2^31 - 1, with places
  uint64_t seed = 0;

  // Throws Error(failed) on sizes that disagree.
  void check() const;
};

void run_cpu(const BeginStepOp& op);
void run_cuda(const BeginStepOp& op, Stream stream);

}  // namespace vqlab
