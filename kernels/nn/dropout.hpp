// Dropout (Srivastava et al. 2014), scaled while it trains, so that inference does nothing.
#pragma once

#include "../core/op.hpp"
#include "../core/random.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

// output = input * (1 / (1 - probability)) where the element is kept, else 0, whatever the input. Of element
// i word i % 4 of random_bits(key, i / 4) decides, which drops it below probability * 2^32. The same op on
// the gradient of the output, in the same step, is the gradient of the input.
struct DropoutOp {
  View<float> output;           // any shape; may alias the input
  View<const float> input;      // same shape
  View<const StepState> state;  // (1), its step keys the draws
  float probability;            // of a 0, in [0, 1)
  uint64_t seed;
  uint32_t tensor;  // which dropout of the net, below 2^24: each draws its own numbers

  // Throws Error(failed) on shapes that differ or a number out of range.
  void check() const;
};

// What all elements have in common.
struct DropoutRule {
  RandomKey key;
  uint32_t threshold;
  float scale;
};
VQ_HOST_DEVICE inline DropoutRule dropout_rule(int64_t step, float probability, uint64_t seed,
                                               uint32_t tensor) {
  return {.key = {.seed = seed, .step = uint32_t(step), .use = RandomUse::dropout, .tensor = tensor},
          .threshold = uint32_t(double(probability) * 0x1p32),
          .scale = 1.0f / (1.0f - probability)};
}

void run_cpu(const DropoutOp& op);
void run_cuda(const DropoutOp& op, Stream stream);

}  // namespace vqlab
