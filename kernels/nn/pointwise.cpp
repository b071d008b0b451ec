#include "pointwise.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kGrain = 16384;

// The only overlap the ops allow is an exact one, so no iteration reads what another writes: ivdep keeps the
// vector loop for it.
VQ_MULTIVERSION void relu_range(const ReluOp& op, int64_t begin, int64_t end) {
  float* output = op.output.data;
  const float* input = op.input.data;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) output[i] = input[i] <= 0.0f ? 0.0f : input[i];
}

VQ_MULTIVERSION void relu_backward_range(const ReluBackwardOp& op, int64_t begin, int64_t end) {
  float* d_input = op.d_input.data;
  const float* d_output = op.d_output.data;
  const float* output = op.output.data;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) d_input[i] = output[i] > 0.0f ? d_output[i] : 0.0f;
}

VQ_MULTIVERSION void add_range(const AddOp& op, int64_t begin, int64_t end) {
  float* output = op.output.data;
  const float* a = op.a.data;
  const float* b = op.b.data;
  if (const float* rectified = op.rectified.data; rectified != nullptr) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) output[i] = rectified[i] > 0.0f ? a[i] + b[i] : 0.0f;
    return;
  }
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) output[i] = a[i] + b[i];
}

}  // namespace

void ReluOp::check() const {
  VQ_REQUIRE(same_shape(output, input), "relu: output {} and input {} differ", output.shape(), input.shape());
}

void ReluBackwardOp::check() const {
  VQ_REQUIRE(same_shape(d_input, d_output) && same_shape(d_input, output),
             "relu backward: d_input {}, d_output {} and output {} differ", d_input.shape(), d_output.shape(),
             output.shape());
}

void AddOp::check() const {
  VQ_REQUIRE(same_shape(output, a) && same_shape(output, b), "add: output {}, a {} and b {} differ",
             output.shape(), a.shape(), b.shape());
  VQ_REQUIRE(!rectified || same_shape(output, rectified), "add: output {} and rectified {} differ",
             output.shape(), rectified.shape());
}

void run_cpu(const ReluOp& op) {
  parallel_ranges(op.output.size(), kGrain, [&](int64_t begin, int64_t end) { relu_range(op, begin, end); });
}

void run_cpu(const ReluBackwardOp& op) {
  parallel_ranges(op.d_input.size(), kGrain,
                  [&](int64_t begin, int64_t end) { relu_backward_range(op, begin, end); });
}

void run_cpu(const AddOp& op) {
  parallel_ranges(op.output.size(), kGrain, [&](int64_t begin, int64_t end) { add_range(op, begin, end); });
}

}  // namespace vqlab
