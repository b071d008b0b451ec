// Digit of each dimension = round(half tanh(z + shift) - offset) + width; the code from the digits, the
// values from both, the gradient past the rounding; see fsq.hpp. tanh in double, from IEEE operations alone.
// Mapping: forward and decoding, a thread owns a row of at most 16 elements, neighbouring threads
// neighbouring rows; backward, a thread owns an element. The first bad row is the minimum of unsigned
// numbers, -1 the largest; the rows of a code are counted by one atomic for those of a warp. Traffic: 8 bytes
// an element and 4 a row forward, 12 bytes an element backward; about 60 double operations an element. Shared
// memory: none. Needs: N < 2^31; any size and alignment to 4 bytes. Not yet run on a GPU.
#include "fsq.hpp"

#include <bit>

#include "../core/cuda.hpp"
#include "../core/fill.hpp"
#include "../core/grid.hpp"
#include "score64.hpp"

namespace vqlab {
namespace {

constexpr int64_t kBlock = 256, kWarp = 32;

__global__ void __launch_bounds__(kBlock) fsq_kernel(float* quantized,         // (N, D)
                                                     int32_t* codes,           // (N)
                                                     unsigned* first_bad_row,  // (1), ~0 before
                                                     int32_t* counts,          // (K), 0 before; or null
                                                     const float* latents,     // (N, D)
                                                     int64_t N, FsqGrid grid) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  const int64_t lane = threadIdx.x % kWarp, first = int64_t(blockIdx.x) * kBlock + threadIdx.x - lane;
  for (int64_t warp = first; warp < N; warp += stride) {  // whole warps, which count together
    const int64_t n = warp + lane;
    int32_t code = n < N ? 0 : -1;
    if (n < N) {
      const float* latent = latents + n * grid.D;
      const bool finite = is_finite_row(latent, grid.D);
      if (!finite) atomicMin(first_bad_row, unsigned(n));
      for (int d = 0; d < grid.D; ++d) {
        const int32_t digit = finite ? fsq_digit(grid, d, latent[d]) : 0;
        quantized[n * grid.D + d] = fsq_value(grid, d, digit);
        code += digit * grid.base[d];
      }
      codes[n] = code;
    }
    if (counts == nullptr) continue;
    const unsigned alike = __match_any_sync(0xffffffffu, code);
    if (code >= 0 && lane == __ffs(int(alike)) - 1) atomicAdd(counts + code, __popc(alike));
  }
}

__global__ void __launch_bounds__(kBlock) fsq_backward_kernel(float* d_latents,  // (N, D), may be d_quantized
                                                              const float* d_quantized,  // (N, D)
                                                              const float* latents,      // (N, D)
                                                              int64_t elements, FsqGrid grid) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < elements; i += stride)
    d_latents[i] = d_quantized[i] * fsq_slope(grid, int(i % grid.D), latents[i]);
}

__global__ void __launch_bounds__(kBlock) fsq_decode_kernel(float* quantized,      // (N, D)
                                                            const int32_t* codes,  // (N)
                                                            int64_t N, FsqGrid grid) {
  const int64_t stride = int64_t(gridDim.x) * kBlock;
  for (int64_t n = int64_t(blockIdx.x) * kBlock + threadIdx.x; n < N; n += stride)
    for (int d = 0; d < grid.D; ++d)
      quantized[n * grid.D + d] = fsq_value(grid, d, fsq_digit_of_code(grid, d, codes[n]));
}

LaunchShape shape_of(int64_t size) { return {elementwise_grid(size, kBlock), unsigned(kBlock)}; }

}  // namespace

void run_cuda(const FsqOp& op, Stream stream) {
  const int64_t N = op.latents[0];
  run_cuda(FillOp{.output = {reinterpret_cast<float*>(op.first_bad_row.data), {1}},
                  .value = std::bit_cast<float>(int32_t(-1))},
           stream);
  if (op.counts)
    run_cuda(FillOp{.output = {reinterpret_cast<float*>(op.counts.data), {op.counts.size()}}, .value = 0.0f},
             stream);
  if (N == 0) return;
  launch("fsq", fsq_kernel, shape_of(N), stream, op.quantized.data, op.codes.data,
         reinterpret_cast<unsigned*>(op.first_bad_row.data), op.counts.data, op.latents.data, N, op.grid);
}

void run_cuda(const FsqBackwardOp& op, Stream stream) {
  const int64_t elements = op.latents.size();
  if (elements == 0) return;
  launch("fsq_backward", fsq_backward_kernel, shape_of(elements), stream, op.d_latents.data,
         op.d_quantized.data, op.latents.data, elements, op.grid);
}

void run_cuda(const FsqDecodeOp& op, Stream stream) {
  const int64_t N = op.quantized[0];
  if (N == 0) return;
  launch("fsq_decode", fsq_decode_kernel, shape_of(N), stream, op.quantized.data, op.codes.data, N, op.grid);
}

}  // namespace vqlab
