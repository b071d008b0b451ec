// Softmax, cross-entropy and its gradient (formulas and order of sums in cross_entropy.hpp), bits as on the
// CPU.
// Mapping: one block counts the labels; a warp takes every (grid * 8)-th row, a lane its classes l, l + 32,
// ..., whose exponentials it computes once for their sum and once more for what it writes; one block adds the
// losses of the rows.
// Traffic: 4 bytes per logit, again from the cache, and 4 for each of gradient and probability. Shared
// memory: 1 KiB. Needs: rows of any length and alignment to 4 bytes; not measured yet.
#include "cross_entropy.hpp"

#include "../core/grid.hpp"
#include "../core/tree_sum.cuh"
#include "cross_entropy_row.hpp"

namespace vqlab {
namespace {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int64_t kRowsPerBlock = kSumLanes / kClassLanes;

__global__ void count_labels_kernel(int64_t* labelled,      // (1)
                                    const int32_t* labels,  // (B)
                                    int64_t B, int64_t C) {
  VQ_SHARED(int, lanes, [kSumLanes]);
  int count = 0;
  for (int64_t b = threadIdx.x; b < B; b += kSumLanes) count += is_class(labels[b], C);
  count = add_lanes(count, lanes);
  if (threadIdx.x == 0) *labelled = count;
}

// The sum over the warp, in every lane: of equal pairs, so of equal bits.
__device__ double add_warp(double value) {
  for (int half = kClassLanes / 2; half > 0; half /= 2) value += __shfl_xor_sync(kWholeWarp, value, half);
  return value;
}

__device__ Largest largest_in_warp(Largest found) {
  for (int half = kClassLanes / 2; half > 0; half /= 2)
    found = larger(found, {__shfl_xor_sync(kWholeWarp, found.logit, half),
                           __shfl_xor_sync(kWholeWarp, found.index, half)});
  return found;
}

__global__ void cross_entropy_kernel(float* d_logits,          // (B, C), or null
                                     int32_t* correct,         // (B)
                                     float* probabilities,     // (B, C), or null
                                     float* losses,            // (B)
                                     const float* logits,      // (B, C)
                                     const int32_t* labels,    // (B)
                                     const StepState* state,   // (1), or null
                                     const int64_t* labelled,  // (1)
                                     int64_t B, int64_t C, float label_smoothing, float weight) {
  const float mix = state != nullptr ? state->mix : 1.0f;
  const double gradient_scale = *labelled > 0 ? double(weight) / double(*labelled) : 0.0;
  const double smoothing = label_smoothing;
  const int lane = int(threadIdx.x) % kClassLanes;
  const int64_t step = int64_t(gridDim.x) * kRowsPerBlock;
  for (int64_t b = blockIdx.x * kRowsPerBlock + threadIdx.x / kClassLanes; b < B; b += step) {
    const float* row = logits + b * C;
    const RowTarget target = row_target(labels, b, B, C, mix);
    Largest found;
    for (int64_t c = lane; c < C; c += kClassLanes) found = larger(found, largest_of(row[c], int(c)));
    found = largest_in_warp(found);
    const double largest = found.logit;
    double sum = 0.0, logit_sum = 0.0;
    for (int64_t c = lane; c < C; c += kClassLanes) {
      const double y = double(row[c]) - largest;
      sum += portable_exp(y);
      logit_sum += y;
    }
    sum = add_warp(sum);
    logit_sum = add_warp(logit_sum);
    if (d_logits != nullptr || probabilities != nullptr)
      for (int64_t c = lane; c < C; c += kClassLanes) {
        const double p = portable_exp(double(row[c]) - largest) / sum;
        if (probabilities != nullptr) probabilities[b * C + c] = float(p);
        if (d_logits != nullptr)
          d_logits[b * C + c] = target.total() > 0.0
                                    ? float(gradient_scale * row_gradient(target, p, int(c), C, smoothing))
                                    : 0.0f;
      }
    if (lane != 0) continue;
    correct[b] = is_class(target.label, C) ? found.index == target.label : -1;
    losses[b] =
        target.total() == 0.0 ? 0.0f : float(row_loss(target, row, largest, sum, logit_sum, C, smoothing));
  }
}

__global__ void finish_cross_entropy_kernel(float* loss,              // (1)
                                            const float* losses,      // (B)
                                            const int64_t* labelled,  // (1)
                                            int64_t B, float weight) {
  VQ_SHARED(float, lanes, [kSumLanes]);
  const float sum = finish_block_sums(losses, B, lanes);
  if (threadIdx.x == 0) *loss = *labelled > 0 ? weight * (sum / float(*labelled)) : 0.0f;
}

}  // namespace

void run_cuda(const CrossEntropyOp& op, Stream stream) {
  const int64_t B = op.logits[0], C = op.logits[1];
  int64_t* const labelled = reinterpret_cast<int64_t*>(op.scratch.data);
  float* const losses = reinterpret_cast<float*>(op.scratch.data + sizeof(int64_t));
  launch("count_labels", count_labels_kernel, {1, kSumThreads}, stream, labelled, op.labels.data, B, C);
  launch("cross_entropy", cross_entropy_kernel, {elementwise_grid(B, kRowsPerBlock), kSumThreads}, stream,
         op.d_logits.data, op.correct.data, op.probabilities.data, losses, op.logits.data, op.labels.data,
         op.state.data, labelled, B, C, op.label_smoothing, op.weight);
  launch("finish_cross_entropy", finish_cross_entropy_kernel, {1, kSumThreads}, stream, op.loss.data, losses,
         labelled, B, op.weight);
}

}  // namespace vqlab
