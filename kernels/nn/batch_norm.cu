// Batch normalisation of rows (R, C), its gradients and its running statistics, as batch_norm.hpp says; bits
// as on the CPU.
// Mapping: sums: a block adds one slice of up to 32 columns, a thread is a lane of a column; one more row of
// blocks adds the slices. Elementwise: a thread owns four channels (one if C or a pointer is not aligned to
// 16 bytes), derives their factors once and steps over rows; up to 32 neighbouring threads share a row.
// Running statistics: a thread per channel.
// Traffic per element: forward 4 + 4 + 8 bytes in three passes, backward 8 + 12, inference 8. Shared memory:
// 1 KiB in the sums. Needs: any sizes and alignment to 4 bytes; not measured yet.
#include "batch_norm.hpp"

#include "../core/column_sums.cuh"
#include "../core/elementwise.cuh"
#include "../core/grid.hpp"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kRowsPerThread = 8;  // share the cost of the factors

// Adds term(element, column) over the rows [begin, end) of a column; the sum is returned to lane 0.
template <class Term>
__device__ float add_column(float* lane_sums, const ColumnThread& at, int64_t begin, int64_t end, int64_t C,
                            int width, const Term& term) {
  float sum = 0.0f;
  if (at.column < C)
    for (int64_t row = begin + at.lane; row < end; row += at.lanes) sum += term(row * C + at.column);
  return add_column_lanes(sum, lane_sums, at, width);
}

// The column sums of the slices: of the values or, with a mean, of the squares of what is left without it.
__global__ void batch_norm_sums_kernel(float* slice_sums,   // (gridDim.x, C)
                                       const float* input,  // (R, C)
                                       const float* mean,   // (C), or null
                                       int64_t R, int64_t slice_rows, int64_t C, int width) {
  VQ_SHARED(float, lane_sums, [kColumnBlock]);
  const ColumnThread at(width);
  const int64_t begin = int64_t(blockIdx.x) * slice_rows, end = min(begin + slice_rows, R);
  float sum;
  if (mean == nullptr) {
    sum = add_column(lane_sums, at, begin, end, C, width, [=](int64_t i) { return input[i]; });
  } else {
    const float center = at.column < C ? mean[at.column] : 0.0f;
    sum = add_column(lane_sums, at, begin, end, C, width, [=](int64_t i) {
      const float centred = input[i] - center;
      return centred * centred;
    });
  }
  if (at.lane == 0 && at.column < C) slice_sums[blockIdx.x * C + at.column] = sum;
}

// result = the sum over the slices, divided.
__global__ void batch_norm_mean_kernel(float* result,            // (C)
                                       const float* slice_sums,  // (slices, C)
                                       int64_t slices, int64_t C, int width, float divisor) {
  VQ_SHARED(float, lane_sums, [kColumnBlock]);
  const ColumnThread at(width);
  const float sum = add_column(lane_sums, at, 0, slices, C, width, [=](int64_t i) { return slice_sums[i]; });
  if (at.lane == 0 && at.column < C) result[at.column] = sum / divisor;
}

// The slice sums of d_output, and behind them those of d_output * (input - mean).
__global__ void batch_norm_gradient_sums_kernel(float* slice_sums,      // (2, gridDim.x, C)
                                                const float* d_output,  // (R, C)
                                                const float* input,     // (R, C)
                                                const float* mean,      // (C)
                                                int64_t R, int64_t slice_rows, int64_t C, int width) {
  VQ_SHARED(float, lane_sums, [kColumnBlock]);
  const ColumnThread at(width);
  const int64_t begin = int64_t(blockIdx.x) * slice_rows, end = min(begin + slice_rows, R);
  float values = 0.0f, products = 0.0f;
  if (at.column < C) {
    const float center = mean[at.column];
    for (int64_t row = begin + at.lane; row < end; row += at.lanes) {
      const float gradient = d_output[row * C + at.column];
      values += gradient;
      products += gradient * (input[row * C + at.column] - center);
    }
  }
  values = add_column_lanes(values, lane_sums, at, width);
  products = add_column_lanes(products, lane_sums, at, width);
  if (at.lane != 0 || at.column >= C) return;
  slice_sums[blockIdx.x * C + at.column] = values;
  slice_sums[(gridDim.x + blockIdx.x) * C + at.column] = products;
}

__global__ void batch_norm_parameters_kernel(float* d_scale,           // (C)
                                             float* d_shift,           // (C)
                                             const float* slice_sums,  // (2, slices, C)
                                             const float* variance,    // (C)
                                             int64_t slices, int64_t C, int width, float epsilon) {
  VQ_SHARED(float, lane_sums, [kColumnBlock]);
  const ColumnThread at(width);
  const auto slice_sum = [=](int64_t i) { return slice_sums[i]; };
  const float values = add_column(lane_sums, at, 0, slices, C, width, slice_sum);
  const float products = add_column(lane_sums, at, slices, 2 * slices, C, width, slice_sum);
  if (at.lane != 0 || at.column >= C) return;
  d_shift[at.column] = values;
  d_scale[at.column] = products * (1.0f / sqrtf(variance[at.column] + epsilon));
}

// Where a thread of an elementwise kernel works: kWidth channels of every step-th row. `width` threads, a
// power of two, stand side by side.
struct RowThread {
  int64_t channel, row, step;
  __device__ RowThread(int width, int vector)
      : channel((int64_t(blockIdx.y) * width + int(threadIdx.x) % width) * vector),
        row(int64_t(blockIdx.x) * (kBlock / width) + int(threadIdx.x) / width),
        step(int64_t(gridDim.x) * (kBlock / width)) {}
};

template <int kWidth>
__global__ void batch_norm_kernel(float* output,          // (R, C)
                                  const float* input,     // (R, C)
                                  const float* mean,      // (C)
                                  const float* variance,  // (C)
                                  const float* scale,     // (C)
                                  const float* shift,     // (C)
                                  int64_t R, int64_t C, int width, float epsilon, Activation activation) {
  const RowThread at(width, kWidth);
  if (at.channel >= C) return;
  Floats<kWidth> center, factor, offset;
  for (int w = 0; w < kWidth; ++w) {
    const int64_t c = at.channel + w;
    center.at[w] = mean[c];
    factor.at[w] = scale[c] * (1.0f / sqrtf(variance[c] + epsilon));
    offset.at[w] = shift[c];
  }
  for (int64_t row = at.row; row < R; row += at.step) {
    Floats<kWidth> x = load_floats<kWidth>(input + row * C + at.channel);
    for (int w = 0; w < kWidth; ++w) {
      x.at[w] = (x.at[w] - center.at[w]) * factor.at[w] + offset.at[w];
      if (activation == Activation::relu && x.at[w] <= 0.0f) x.at[w] = 0.0f;
    }
    store_floats<kWidth>(output + row * C + at.channel, x);
  }
}

template <int kWidth>
__global__ void batch_norm_backward_kernel(float* d_input,         // (R, C)
                                           const float* d_scale,   // (C)
                                           const float* d_shift,   // (C)
                                           const float* d_output,  // (R, C)
                                           const float* input,     // (R, C)
                                           const float* mean,      // (C)
                                           const float* variance,  // (C)
                                           const float* scale,     // (C)
                                           int64_t R, int64_t C, int width, float epsilon) {
  const RowThread at(width, kWidth);
  if (at.channel >= C) return;
  Floats<kWidth> center, inverse, factor, shift, slope;
  for (int w = 0; w < kWidth; ++w) {
    const int64_t c = at.channel + w;
    center.at[w] = mean[c];
    inverse.at[w] = 1.0f / sqrtf(variance[c] + epsilon);
    factor.at[w] = scale[c] * inverse.at[w];
    shift.at[w] = d_shift[c] / float(R);
    slope.at[w] = d_scale[c] / float(R);
  }
  for (int64_t row = at.row; row < R; row += at.step) {
    const Floats<kWidth> x = load_floats<kWidth>(input + row * C + at.channel);
    Floats<kWidth> gradient = load_floats<kWidth>(d_output + row * C + at.channel);
    for (int w = 0; w < kWidth; ++w)
      gradient.at[w] = factor.at[w] * (gradient.at[w] - shift.at[w] -
                                       (x.at[w] - center.at[w]) * inverse.at[w] * slope.at[w]);
    store_floats<kWidth>(d_input + row * C + at.channel, gradient);
  }
}

__global__ void batch_norm_average_kernel(float* running_mean,      // (C)
                                          float* running_variance,  // (C)
                                          const float* mean,        // (C)
                                          const float* variance,    // (C)
                                          const int32_t* poisoned,  // (1)
                                          int64_t C, float unbiased, float momentum) {
  const int64_t c = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (c >= C || *poisoned != 0) return;
  const float rest = 1.0f - momentum;
  running_mean[c] = rest * running_mean[c] + momentum * mean[c];
  running_variance[c] = rest * running_variance[c] + momentum * (variance[c] * unbiased);
}

struct SumShape {
  ColumnSlices slices;
  int width;
  LaunchShape sums, finish;
};

SumShape sum_shape(int64_t R, int64_t C) {
  const ColumnSlices slices = column_slices(R, C);
  const int64_t width = column_width(C);
  const auto height = unsigned((C + width - 1) / width);
  return {slices,
          int(width),
          {dim3(unsigned(slices.count), height), unsigned(kColumnBlock)},
          {dim3(1, height), unsigned(kColumnBlock)}};
}

struct RowShape {
  bool vectors;
  int width;
  LaunchShape launch;
};

RowShape row_shape(int64_t R, int64_t C, bool aligned) {
  const bool vectors = aligned && C % 4 == 0;
  const int64_t groups = vectors ? C / 4 : C, width = column_width(groups);
  const dim3 grid(elementwise_grid(R, kBlock / width * kRowsPerThread),
                  unsigned((groups + width - 1) / width));
  return {vectors, int(width), {grid, unsigned(kBlock)}};
}

void launch_normalisation(const View<float>& output, const View<const float>& input, const float* mean,
                          const float* variance, const float* scale, const float* shift, float epsilon,
                          Activation activation, Stream stream) {
  const RowShape shape = row_shape(input[0], input[1], aligned_to_16_bytes(output.data, input.data));
  launch("batch_norm", shape.vectors ? batch_norm_kernel<4> : batch_norm_kernel<1>, shape.launch, stream,
         output.data, input.data, mean, variance, scale, shift, input[0], input[1], shape.width, epsilon,
         activation);
}

}  // namespace

void run_cuda(const BatchNormOp& op, Stream stream) {
  const int64_t R = op.input[0], C = op.input[1];
  const SumShape shape = sum_shape(R, C);
  float* const slice_sums = reinterpret_cast<float*>(op.scratch.data);
  const auto average = [&](float* result, const float* mean) {
    launch("batch_norm_sums", batch_norm_sums_kernel, shape.sums, stream, slice_sums, op.input.data, mean, R,
           shape.slices.rows, C, shape.width);
    launch("batch_norm_mean", batch_norm_mean_kernel, shape.finish, stream, result, slice_sums,
           shape.slices.count, C, shape.width, float(R));
  };
  average(op.mean.data, nullptr);
  average(op.variance.data, op.mean.data);
  launch_normalisation(op.output, op.input, op.mean.data, op.variance.data, op.scale.data, op.shift.data,
                       op.epsilon, op.activation, stream);
}

void run_cuda(const BatchNormInferenceOp& op, Stream stream) {
  if (op.input.size() == 0) return;
  launch_normalisation(op.output, op.input, op.running_mean.data, op.running_variance.data, op.scale.data,
                       op.shift.data, op.epsilon, op.activation, stream);
}

void run_cuda(const BatchNormBackwardOp& op, Stream stream) {
  const int64_t R = op.input[0], C = op.input[1];
  const SumShape sums = sum_shape(R, C);
  float* const slice_sums = reinterpret_cast<float*>(op.scratch.data);
  launch("batch_norm_gradient_sums", batch_norm_gradient_sums_kernel, sums.sums, stream, slice_sums,
         op.d_output.data, op.input.data, op.mean.data, R, sums.slices.rows, C, sums.width);
  launch("batch_norm_parameters", batch_norm_parameters_kernel, sums.finish, stream, op.d_scale.data,
         op.d_shift.data, slice_sums, op.variance.data, sums.slices.count, C, sums.width, op.epsilon);
  if (!op.d_input) return;
  const RowShape rows =
      row_shape(R, C, aligned_to_16_bytes(op.d_input.data, op.d_output.data, op.input.data));
  launch("batch_norm_backward", rows.vectors ? batch_norm_backward_kernel<4> : batch_norm_backward_kernel<1>,
         rows.launch, stream, op.d_input.data, op.d_scale.data, op.d_shift.data, op.d_output.data,
         op.input.data, op.mean.data, op.variance.data, op.scale.data, R, C, rows.width, op.epsilon);
}

void run_cuda(const BatchNormAverageOp& op, Stream stream) {
  const int64_t C = op.mean.size();
  if (C == 0) return;
  launch("batch_norm_average", batch_norm_average_kernel,
         {unsigned((C + kBlock - 1) / kBlock), unsigned(kBlock)}, stream, op.running_mean.data,
         op.running_variance.data, op.mean.data, op.variance.data, op.poisoned.data, C,
         float(op.rows) / float(op.rows - 1), op.momentum);
}

}  // namespace vqlab
