#include "batch_norm.hpp"

#include <cmath>

#include "../core/column_sums.hpp"
#include "../core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kGrain = 16384;       // elements of a piece of work
constexpr int64_t kChannelBlock = 256;  // whose factors are kept at a time

// The sums of term(row, column) over the rows [begin, end), one slice of column_sums.hpp.
template <class Term>
inline __attribute__((always_inline)) void add_slice(float* sums, int64_t begin, int64_t end, int64_t columns,
                                                     const Term& term) {
  const int64_t width = column_width(columns), lanes = column_lanes(columns);
  for (int64_t first = 0; first < columns; first += width) {
    const int64_t count = std::min(width, columns - first);
    float lane[kColumnBlock] = {};
    for (int64_t row = begin; row < end; ++row) {
      float* sum = lane + (row - begin) % lanes * width;
      for (int64_t c = 0; c < count; ++c) sum[c] += term(row, first + c);
    }
    for (int64_t half = lanes / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half * width; ++i) lane[i] += lane[i + half * width];
    std::copy(lane, lane + count, sums + first);
  }
}

VQ_MULTIVERSION void slice_of_values(float* sums, const float* input, int64_t begin, int64_t end, int64_t C) {
  add_slice(sums, begin, end, C, [=](int64_t row, int64_t c) { return input[row * C + c]; });
}

VQ_MULTIVERSION void slice_of_squares(float* sums, const float* input, const float* mean, int64_t begin,
                                      int64_t end, int64_t C) {
  add_slice(sums, begin, end, C, [=](int64_t row, int64_t c) {
    const float centred = input[row * C + c] - mean[c];
    return centred * centred;
  });
}

VQ_MULTIVERSION void slice_of_products(float* sums, const float* d_output, const float* input,
                                       const float* mean, int64_t begin, int64_t end, int64_t C) {
  add_slice(sums, begin, end, C,
            [=](int64_t row, int64_t c) { return d_output[row * C + c] * (input[row * C + c] - mean[c]); });
}

// sums (C): slice(to, begin, end) writes the sums of a slice of the R rows to slice_sums, and they are added.
template <class Slice>
void sum_columns(float* sums, float* slice_sums, int64_t R, int64_t C, const Slice& slice) {
  const ColumnSlices slices = column_slices(R, C);
  parallel_for(slices.count, [&](int64_t i, int) {
    slice(slice_sums + i * C, std::min(R, i * slices.rows), std::min(R, (i + 1) * slices.rows));
  });
  slice_of_values(sums, slice_sums, 0, slices.count, C);
}

float* floats(const View<std::byte>& scratch) { return reinterpret_cast<float*>(scratch.data); }

// Of a normalisation, with statistics of either kind.
struct Normalisation {
  float* output;
  const float *input, *mean, *variance, *scale, *shift;
  int64_t C;
  float epsilon;
  Activation activation;
};

VQ_MULTIVERSION void normalise_rows(const Normalisation& n, int64_t begin, int64_t end) {
  float factor[kChannelBlock];
  for (int64_t first = 0; first < n.C; first += kChannelBlock) {
    const int64_t count = std::min(kChannelBlock, n.C - first);
    const float *mean = n.mean + first, *shift = n.shift + first;
    for (int64_t c = 0; c < count; ++c)
      factor[c] = n.scale[first + c] * (1.0f / __builtin_sqrtf(n.variance[first + c] + n.epsilon));
    for (int64_t row = begin; row < end; ++row) {
      const float* x = n.input + row * n.C + first;
      float* y = n.output + row * n.C + first;
      if (n.activation == Activation::relu) {
#pragma GCC ivdep
        for (int64_t c = 0; c < count; ++c) {
          const float value = (x[c] - mean[c]) * factor[c] + shift[c];
          y[c] = value <= 0.0f ? 0.0f : value;
        }
      } else {
#pragma GCC ivdep
        for (int64_t c = 0; c < count; ++c) y[c] = (x[c] - mean[c]) * factor[c] + shift[c];
      }
    }
  }
}

void normalise(const Normalisation& n, int64_t R) {
  parallel_ranges(R, std::max(int64_t(1), kGrain / n.C),
                  [&](int64_t begin, int64_t end) { normalise_rows(n, begin, end); });
}

VQ_MULTIVERSION void backward_rows(const BatchNormBackwardOp& op, int64_t begin, int64_t end) {
  const int64_t C = op.input[1];
  const float rows = float(op.input[0]);
  float inverse[kChannelBlock], factor[kChannelBlock], shift[kChannelBlock], slope[kChannelBlock];
  for (int64_t first = 0; first < C; first += kChannelBlock) {
    const int64_t count = std::min(kChannelBlock, C - first);
    const float* mean = op.mean.data + first;
    for (int64_t c = 0; c < count; ++c) {
      inverse[c] = 1.0f / __builtin_sqrtf(op.variance.data[first + c] + op.epsilon);
      factor[c] = op.scale.data[first + c] * inverse[c];
      shift[c] = op.d_shift.data[first + c] / rows;
      slope[c] = op.d_scale.data[first + c] / rows;
    }
    for (int64_t row = begin; row < end; ++row) {
      const float *x = op.input.data + row * C + first, *d_output = op.d_output.data + row * C + first;
      float* d_input = op.d_input.data + row * C + first;
#pragma GCC ivdep
      for (int64_t c = 0; c < count; ++c)
        d_input[c] = factor[c] * (d_output[c] - shift[c] - (x[c] - mean[c]) * inverse[c] * slope[c]);
    }
  }
}

bool is_row(const View<const float>& vector, int64_t channels) {
  return vector.rank == 1 && vector.size() == channels && vector;
}

bool aligned_to_floats(const View<std::byte>& scratch) {
  return reinterpret_cast<uintptr_t>(scratch.data) % alignof(float) == 0;
}

}  // namespace

void BatchNormOp::check() const {
  VQ_REQUIRE(input.rank == 2 && input.size() > 0 && same_shape(input, output),
             "batch norm: output {} and input {} differ, or are not rows", output.shape(), input.shape());
  VQ_REQUIRE(output.data != input.data, "batch norm: the output would overwrite the input");
  VQ_REQUIRE(is_row(mean, input[1]) && is_row(variance, input[1]) && is_row(scale, input[1]) &&
                 is_row(shift, input[1]),
             "batch norm: mean {}, variance {}, scale {} or shift {} does not fit to input {}", mean.shape(),
             variance.shape(), scale.shape(), shift.shape(), input.shape());
  VQ_REQUIRE(epsilon > 0.0f, "batch norm: epsilon {} is not positive", epsilon);
  require_scratch("batch norm", scratch, batch_norm_scratch_bytes(input[0], input[1]));
  VQ_REQUIRE(aligned_to_floats(scratch), "batch norm: the scratch is not aligned to 4 bytes");
}

void BatchNormInferenceOp::check() const {
  VQ_REQUIRE(input.rank == 2 && same_shape(input, output),
             "batch norm inference: output {} and input {} differ, or are not rows", output.shape(),
             input.shape());
  VQ_REQUIRE(is_row(running_mean, input[1]) && is_row(running_variance, input[1]) &&
                 is_row(scale, input[1]) && is_row(shift, input[1]),
             "batch norm inference: running_mean {}, running_variance {}, scale {} or shift {} does not fit "
             "to input {}",
             running_mean.shape(), running_variance.shape(), scale.shape(), shift.shape(), input.shape());
  VQ_REQUIRE(epsilon > 0.0f, "batch norm inference: epsilon {} is not positive", epsilon);
}

void BatchNormBackwardOp::check() const {
  VQ_REQUIRE(input.rank == 2 && input.size() > 0 && same_shape(input, d_output) &&
                 (!d_input || same_shape(input, d_input)),
             "batch norm backward: d_input {}, d_output {} and input {} differ, or are not rows",
             d_input.shape(), d_output.shape(), input.shape());
  VQ_REQUIRE(is_row(d_scale, input[1]) && is_row(d_shift, input[1]) && is_row(mean, input[1]) &&
                 is_row(variance, input[1]) && is_row(scale, input[1]),
             "batch norm backward: d_scale {}, d_shift {}, mean {}, variance {} or scale {} does not fit to "
             "input {}",
             d_scale.shape(), d_shift.shape(), mean.shape(), variance.shape(), scale.shape(), input.shape());
  VQ_REQUIRE(epsilon > 0.0f, "batch norm backward: epsilon {} is not positive", epsilon);
  require_scratch("batch norm backward", scratch, batch_norm_scratch_bytes(input[0], input[1]));
  VQ_REQUIRE(aligned_to_floats(scratch), "batch norm backward: the scratch is not aligned to 4 bytes");
}

void BatchNormAverageOp::check() const {
  const int64_t channels = running_mean.size();
  VQ_REQUIRE(is_row(running_mean, channels) && is_row(running_variance, channels) && is_row(mean, channels) &&
                 is_row(variance, channels) && poisoned.size() == 1,
             "batch norm average: running_mean {}, running_variance {}, mean {} and variance {} differ, or "
             "poisoned {} is not one element",
             running_mean.shape(), running_variance.shape(), mean.shape(), variance.shape(),
             poisoned.shape());
  VQ_REQUIRE(rows >= 2, "batch norm average: {} rows have no variance", rows);
  VQ_REQUIRE(momentum >= 0.0f && momentum <= 1.0f, "batch norm average: momentum {} is not in [0, 1]",
             momentum);
}

int64_t batch_norm_scratch_bytes(int64_t rows, int64_t channels) {
  return 2 * column_slices(rows, channels).count * channels * int64_t(sizeof(float));
}

void run_cpu(const BatchNormOp& op) {
  const int64_t R = op.input[0], C = op.input[1];
  const float* input = op.input.data;
  float *mean = op.mean.data, *variance = op.variance.data;
  sum_columns(mean, floats(op.scratch), R, C,
              [&](float* sums, int64_t begin, int64_t end) { slice_of_values(sums, input, begin, end, C); });
  for (int64_t c = 0; c < C; ++c) mean[c] /= float(R);
  sum_columns(variance, floats(op.scratch), R, C, [&](float* sums, int64_t begin, int64_t end) {
    slice_of_squares(sums, input, mean, begin, end, C);
  });
  for (int64_t c = 0; c < C; ++c) variance[c] /= float(R);
  normalise(
      {op.output.data, input, mean, variance, op.scale.data, op.shift.data, C, op.epsilon, op.activation}, R);
}

void run_cpu(const BatchNormInferenceOp& op) {
  if (op.input.size() == 0) return;
  normalise({op.output.data, op.input.data, op.running_mean.data, op.running_variance.data, op.scale.data,
             op.shift.data, op.input[1], op.epsilon, op.activation},
            op.input[0]);
}

void run_cpu(const BatchNormBackwardOp& op) {
  const int64_t R = op.input[0], C = op.input[1];
  sum_columns(op.d_shift.data, floats(op.scratch), R, C, [&](float* sums, int64_t begin, int64_t end) {
    slice_of_values(sums, op.d_output.data, begin, end, C);
  });
  sum_columns(op.d_scale.data, floats(op.scratch), R, C, [&](float* sums, int64_t begin, int64_t end) {
    slice_of_products(sums, op.d_output.data, op.input.data, op.mean.data, begin, end, C);
  });
  for (int64_t c = 0; c < C; ++c) op.d_scale.data[c] *= 1.0f / std::sqrt(op.variance.data[c] + op.epsilon);
  if (op.d_input)
    parallel_ranges(R, std::max(int64_t(1), kGrain / C),
                    [&](int64_t begin, int64_t end) { backward_rows(op, begin, end); });
}

void run_cpu(const BatchNormAverageOp& op) {
  if (op.poisoned.data[0]) return;
  const float unbiased = float(op.rows) / float(op.rows - 1), rest = 1.0f - op.momentum;
  for (int64_t c = 0; c < op.mean.size(); ++c) {
    op.running_mean.data[c] = rest * op.running_mean.data[c] + op.momentum * op.mean.data[c];
    op.running_variance.data[c] =
        rest * op.running_variance.data[c] + op.momentum * (op.variance.data[c] * unbiased);
  }
}

}  // namespace vqlab
