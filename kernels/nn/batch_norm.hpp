// Batch normalisation (Ioffe and Szegedy 2015) of rows, which of images are the pixels of the batch: each
// channel gets the mean 0 and the variance 1, then a scale and a shift that are learnt. All sums run over the
// rows in the order of column_sums.hpp; the variance is that of the centred values, so nothing cancels.
#pragma once

#include "../core/activation.hpp"
#include "../core/op.hpp"

namespace vqlab {

// Training: output = activation((input - mean) * (scale / sqrt(variance + epsilon)) + shift) with the
// statistics of the batch.
struct BatchNormOp {
  View<float> output;              // (R, C), not the input, which the gradient needs
  View<float> mean, variance;      // (C); the variance is biased: the mean square, over R
  View<const float> input;         // (R, C), R >= 1
  View<const float> scale, shift;  // (C)
  float epsilon;                   // > 0; 1e-5
  Activation activation;
  View<std::byte> scratch;  // at least batch_norm_scratch_bytes(R, C), aligned to 4 bytes
  void check() const;       // all four throw Error(failed) on shapes that disagree or a number out of range
};

// Inference: the same with given statistics.
struct BatchNormInferenceOp {
  View<float> output;                                // (R, C), may alias input
  View<const float> input;                           // (R, C)
  View<const float> running_mean, running_variance;  // (C)
  View<const float> scale, shift;                    // (C)
  float epsilon;                                     // > 0
  Activation activation;
  void check() const;
};

// The gradients of BatchNormOp from the one in front of its activation (whoever writes the gradient of a
// rectified tensor undoes the ReLU), through the statistics too. x^ = (input - mean) / sqrt(variance +
// epsilon), taken from the input again:
//   d_shift = sum d_output;  d_scale = sum d_output x^
//   d_input = scale / sqrt(variance + epsilon) * (d_output - d_shift / R - x^ d_scale / R)
struct BatchNormBackwardOp {
  View<float> d_input;               // (R, C), may alias d_output; or absent
  View<float> d_scale, d_shift;      // (C)
  View<const float> d_output;        // (R, C), R >= 1
  View<const float> input;           // (R, C), as in BatchNormOp, like all that follows
  View<const float> mean, variance;  // (C)
  View<const float> scale;           // (C)
  float epsilon;                     // > 0
  View<std::byte> scratch;           // at least batch_norm_scratch_bytes(R, C), aligned to 4 bytes
  void check() const;
};

// What inference will use: running = (1 - momentum) * running + momentum * that of the batch, of the variance
// the unbiased one, variance * R / (R - 1). While poisoned it changes nothing.
struct BatchNormAverageOp {
  View<float> running_mean, running_variance;  // (C), updated
  View<const float> mean, variance;            // (C), of BatchNormOp
  View<const int32_t> poisoned;                // (1)
  int64_t rows;                                // R of the batch, >= 2
  float momentum;                              // in [0, 1]; 0.1
  void check() const;
};

int64_t batch_norm_scratch_bytes(int64_t rows, int64_t channels);

void run_cpu(const BatchNormOp& op);
void run_cuda(const BatchNormOp& op, Stream stream);
void run_cpu(const BatchNormInferenceOp& op);
void run_cuda(const BatchNormInferenceOp& op, Stream stream);
void run_cpu(const BatchNormBackwardOp& op);
void run_cuda(const BatchNormBackwardOp& op, Stream stream);
void run_cpu(const BatchNormAverageOp& op);
void run_cuda(const BatchNormAverageOp& op, Stream stream);

}  // namespace vqlab
