// output[i] = value.
// Mapping: a thread owns every (grid * block)-th element, so that each store of a warp is one 128-byte line.
// Traffic: 4 bytes written per element. Shared memory: none. Needs: nothing; any size and alignment to 4
// bytes. Ran on an H200; not timed.
#include "fill.hpp"

#include "cuda.hpp"
#include "grid.hpp"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256;

__global__ void fill_kernel(float* output, int64_t size, float value) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < size; i += stride) output[i] = value;
}

}  // namespace

const void* fill_kernel_cuda() { return reinterpret_cast<const void*>(fill_kernel); }

void run_cuda(const FillOp& op, Stream stream) {
  const int64_t size = op.output.size();
  if (size == 0) return;
  launch("fill", fill_kernel, {elementwise_grid(size, kBlock), unsigned(kBlock)}, stream, op.output.data,
         size, op.value);
}

}  // namespace vqlab
