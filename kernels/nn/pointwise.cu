// output = max(input, 0), NaN kept; its gradient, d_output where output > 0, else 0; output = a + b,
// or 0 where a ReLU gave nothing.
// Mapping: a thread owns every (grid * block)-th group of four floats, or single ones if a pointer is not
// aligned to 16 bytes. It reads its elements before it writes them, so that an output may be an input.
// Traffic: 8, 12 and 12 or 16 bytes per element. Shared memory: none. Needs: nothing; any size and alignment
// to 4 bytes. Measured on an H200, 200 k elements: 2.4 to 2.9 us.
#include "pointwise.hpp"

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256;

template <int kWidth>
__global__ void relu_kernel(float* output,       // (size)
                            const float* input,  // (size)
                            int64_t size) {
  for_each_element<kWidth>(size, [=]<int kCount>(int64_t i, Width<kCount>) {
    Floats<kCount> x = load_floats<kCount>(input + i);
    for (int w = 0; w < kCount; ++w) x.at[w] = x.at[w] <= 0.0f ? 0.0f : x.at[w];
    store_floats<kCount>(output + i, x);
  });
}

template <int kWidth>
__global__ void relu_backward_kernel(float* d_input,         // (size)
                                     const float* d_output,  // (size)
                                     const float* output,    // (size)
                                     int64_t size) {
  for_each_element<kWidth>(size, [=]<int kCount>(int64_t i, Width<kCount>) {
    Floats<kCount> gradient = load_floats<kCount>(d_output + i);
    const Floats<kCount> y = load_floats<kCount>(output + i);
    for (int w = 0; w < kCount; ++w) gradient.at[w] = y.at[w] > 0.0f ? gradient.at[w] : 0.0f;
    store_floats<kCount>(d_input + i, gradient);
  });
}

template <int kWidth, bool kMasked>
__global__ void add_kernel(float* output,           // (size)
                           const float* a,          // (size)
                           const float* b,          // (size)
                           const float* rectified,  // (size), if kMasked
                           int64_t size) {
  for_each_element<kWidth>(size, [=]<int kCount>(int64_t i, Width<kCount>) {
    Floats<kCount> sum = load_floats<kCount>(a + i);
    const Floats<kCount> other = load_floats<kCount>(b + i);
    for (int w = 0; w < kCount; ++w) sum.at[w] += other.at[w];
    if constexpr (kMasked) {
      const Floats<kCount> y = load_floats<kCount>(rectified + i);
      for (int w = 0; w < kCount; ++w) sum.at[w] = y.at[w] > 0.0f ? sum.at[w] : 0.0f;
    }
    store_floats<kCount>(output + i, sum);
  });
}

LaunchShape shape_for(int64_t size, bool wide) {
  return {elementwise_grid(size, wide ? 4 * kBlock : kBlock), kBlock};
}

}  // namespace

void run_cuda(const ReluOp& op, Stream stream) {
  const int64_t size = op.output.size();
  if (size == 0) return;
  const bool wide = aligned_to_16_bytes(op.output.data, op.input.data);
  launch("relu", wide ? relu_kernel<4> : relu_kernel<1>, shape_for(size, wide), stream, op.output.data,
         op.input.data, size);
}

void run_cuda(const ReluBackwardOp& op, Stream stream) {
  const int64_t size = op.d_input.size();
  if (size == 0) return;
  const bool wide = aligned_to_16_bytes(op.d_input.data, op.d_output.data, op.output.data);
  launch("relu_backward", wide ? relu_backward_kernel<4> : relu_backward_kernel<1>, shape_for(size, wide),
         stream, op.d_input.data, op.d_output.data, op.output.data, size);
}

void run_cuda(const AddOp& op, Stream stream) {
  const int64_t size = op.output.size();
  if (size == 0) return;
  const bool wide = aligned_to_16_bytes(op.output.data, op.a.data, op.b.data, op.rectified.data);
  const auto kernel = op.rectified ? wide ? add_kernel<4, true> : add_kernel<1, true>
                      : wide ? add_kernel<4, false>
                                   : add_kernel<1, false>;
  launch("add", kernel, shape_for(size, wide), stream, op.output.data, op.a.data, op.b.data,
         op.rectified.data, size);
}

}  // namespace vqlab
