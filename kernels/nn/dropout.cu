// output = input / (1 - probability) or 0, by random bits of the element's index (dropout.hpp).
// Mapping: a thread owns every (grid * block)-th group of four floats, whose four random words one draw
// gives, or single ones if a pointer is not aligned to 16 bytes. It reads its elements before it writes them.
// Traffic: 8 bytes per element. Shared memory: none. Needs: nothing; any size and
// alignment to 4 bytes; not measured yet.
#include "dropout.hpp"

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256;

template <int kWidth>
__global__ void dropout_kernel(float* output,           // (size)
                               const float* input,      // (size)
                               const StepState* state,  // (1)
                               int64_t size, float probability, uint64_t seed, uint32_t tensor) {
  const DropoutRule rule = dropout_rule(state->step, probability, seed, tensor);
  for_each_element<kWidth>(size, [=]<int kCount>(int64_t i, Width<kCount>) {
    const auto bits = random_bits(rule.key, uint64_t(i / 4));
    Floats<kCount> x = load_floats<kCount>(input + i);
    for (int w = 0; w < kCount; ++w) {
      const uint32_t word = kCount == 4 ? bits.v[w] : bits.v[i % 4];
      x.at[w] = word >= rule.threshold ? x.at[w] * rule.scale : 0.0f;
    }
    store_floats<kCount>(output + i, x);
  });
}

}  // namespace

void run_cuda(const DropoutOp& op, Stream stream) {
  const int64_t size = op.output.size();
  if (size == 0) return;
  const bool wide = aligned_to_16_bytes(op.output.data, op.input.data);
  launch("dropout", wide ? dropout_kernel<4> : dropout_kernel<1>,
         {elementwise_grid(size, wide ? 4 * kBlock : kBlock), kBlock}, stream, op.output.data, op.input.data,
         op.state.data, size, op.probability, op.seed, op.tensor);
}

}  // namespace vqlab
