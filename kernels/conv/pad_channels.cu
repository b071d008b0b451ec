// output[r][c] = input[r][c] where the input has such an element, else 0.
// Mapping: a thread owns every (grid * block)-th element of the output. Traffic: 4 bytes written per element
// of the output, 4 read per element of the overlap; these are weights, of some kilobytes. Shared memory:
// none. Needs: nothing; any sizes and alignment to 4 bytes. Ran on an H200; not timed.
#include "pad_channels.hpp"

#include "../core/cuda.hpp"
#include "../core/grid.hpp"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256;

// output (output_rows, output_channels), input (input_rows, input_channels)
__global__ void pad_channels_kernel(float* output, const float* input, int64_t output_rows,
                                    int64_t output_channels, int64_t input_rows, int64_t input_channels) {
  const int64_t size = output_rows * output_channels, stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < size; i += stride) {
    const int64_t row = i / output_channels, channel = i - row * output_channels;
    const bool inside = row < input_rows && channel < input_channels;
    output[i] = inside ? input[row * input_channels + channel] : 0.0f;
  }
}

}  // namespace

void pad_channels_cuda(const View<float>& output, const View<const float>& input, Stream stream) {
  const int64_t size = output.size();
  if (size == 0) return;
  launch("pad_channels", pad_channels_kernel, {elementwise_grid(size, kBlock), unsigned(kBlock)}, stream,
         output.data, input.data, output[0], output[1], input[0], input[1]);
}

}  // namespace vqlab
