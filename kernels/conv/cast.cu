// to_bf16: output = input rounded to bf16, to the nearest, ties to even, NaN kept. from_bf16: output =
// activation(input + bias) in fp32, ReLU keeping NaN (x <= 0 ? 0 : x); 0 in padding channels.
// Mapping: a thread owns 4 elements (1 if unaligned) of every (grid * block)-th place. Traffic per element: 4
// bytes read and 2 written; 2 read and 4 written. Shared memory: none. Needs: any sizes and alignment to the
// element. Measured: not yet run on a GPU.
#include "cast.hpp"

#include <cstring>

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"
#include "conv_bias.cuh"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256;

// kWidth bf16 numbers that one memory operation moves.
template <int kWidth>
struct alignas(kWidth * sizeof(uint16_t)) Halves {
  uint16_t at[kWidth];
};

bool aligned_to_8_bytes(const void* data) { return reinterpret_cast<uintptr_t>(data) % 8 == 0; }

template <int kWidth>
__global__ void to_bf16_kernel(uint16_t* output, const float* input, int64_t size) {
  for_each_element<kWidth>(size, [=]<int kCount>(int64_t i, Width<kCount>) {
    const Floats<kCount> x = load_floats<kCount>(input + i);
    Halves<kCount> rounded;
#pragma unroll
    for (int j = 0; j < kCount; ++j) rounded.at[j] = to_bf16(__float_as_uint(x.at[j]));
    *reinterpret_cast<Halves<kCount>*>(output + i) = rounded;
  });
}

// output, input (size / pitch, pitch); bias (channels) or null. kWidth divides pitch.
template <int kWidth>
__global__ void from_bf16_kernel(float* output, const uint16_t* input, const float* bias, int64_t size,
                                 unsigned pitch, unsigned channels, Activation activation) {
  const int64_t step = int64_t(gridDim.x) * kBlock * kWidth;
  int64_t i = (int64_t(blockIdx.x) * kBlock + threadIdx.x) * kWidth;
  // The channel is followed along instead of divided out again.
  const auto channel_step = unsigned(step % pitch);
  auto channel = unsigned(i % pitch);
  for (; i < size; i += step) {
    const Halves<kWidth> x = *reinterpret_cast<const Halves<kWidth>*>(input + i);
    Floats<kWidth> result;
    for (unsigned j = 0; j < kWidth; ++j)
      result.at[j] =
          biased(__uint_as_float(unsigned(x.at[j]) << 16), bias, channel + j, channels, activation);
    store_floats<kWidth>(output + i, result);
    channel += channel_step;
    if (channel >= pitch) channel -= pitch;
  }
}

}  // namespace

void to_bf16_cuda(const View<uint16_t>& output, const View<const float>& input, Stream stream) {
  const int64_t size = input.size();
  if (size == 0) return;
  const bool vectors = aligned_to_16_bytes(input.data) && aligned_to_8_bytes(output.data);
  launch("to_bf16", vectors ? to_bf16_kernel<4> : to_bf16_kernel<1>,
         {elementwise_grid(size, vectors ? 4 * kBlock : kBlock), unsigned(kBlock)}, stream, output.data,
         input.data, size);
}

void from_bf16_cuda(const View<float>& output, const View<const uint16_t>& input,
                    const View<const float>& bias, int64_t channels, Activation activation, Stream stream) {
  const int64_t size = output.size();
  if (size == 0) return;
  const unsigned pitch = size_in_32_bits("from_bf16", output[1]);
  const bool vectors = pitch % 4 == 0 && aligned_to_16_bytes(output.data) && aligned_to_8_bytes(input.data);
  launch("from_bf16", vectors ? from_bf16_kernel<4> : from_bf16_kernel<1>,
         {elementwise_grid(size, vectors ? 4 * kBlock : kBlock), unsigned(kBlock)}, stream, output.data,
         input.data, bias.data, size, pitch, unsigned(channels), activation);
}

}  // namespace vqlab
