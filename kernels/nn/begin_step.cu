// state = plan[(state.step + 1) % R]; places[b] = order(first_index + b), labels[b] = set_labels[places[b]].
// Mapping: one block, whose threads step over the places of the batch: four to some sixteen Philox draws
// each. Traffic: about 100 bytes, and 12 a place, 4 of them at random. Shared memory: none. Needs: nothing.
// Not yet run on a GPU.
#include "begin_step.hpp"

#include "../core/cuda.hpp"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 512;

__global__ void __launch_bounds__(kBlock)
    begin_step_kernel(StepState* state,           // (1)
                      int32_t* places,            // (B) or null
                      int32_t* labels,            // (B) or null
                      const StepState* plan,      // (R)
                      const int32_t* set_labels,  // (images) or null
                      int64_t R, int64_t B, int64_t images, uint64_t seed) {
  const StepState now = plan[(state->step + 1) % R];
  __syncthreads();  // all have read the step before it changes
  if (threadIdx.x == 0) *state = now;
  if (B == 0) return;
  const Permutation order = epoch_order(seed, now.epoch, images);
  for (int64_t b = threadIdx.x; b < B; b += kBlock) {
    const auto place = int32_t(order(uint64_t(now.first_index + b)));
    places[b] = place;
    if (labels != nullptr) labels[b] = set_labels != nullptr ? set_labels[place] : -1;
  }
}

}  // namespace

void run_cuda(const BeginStepOp& op, Stream stream) {
  launch("begin_step", begin_step_kernel, {1, kBlock}, stream, op.state.data, op.places.data, op.labels.data,
         op.plan.data, op.set_labels.data, op.plan.size(), op.places.size(), op.images, op.seed);
}

}  // namespace vqlab
