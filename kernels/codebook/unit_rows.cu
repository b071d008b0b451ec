// u = z / ||z||; dz = (G - (G.u) u) / ||z||, per row and in double; see unit_rows.hpp.
// Mapping: a warp owns a row, its lanes every 32nd element; rows are taken with the stride of the grid. Sums
// in the order of row_sum.hpp. Traffic: each operand once from memory and once more from L1: 8 bytes an
// element forward, 12 backward. Shared memory: none. Needs: D < 2^30; any size and alignment to 4 bytes. Not
// yet run on a GPU.
#include "unit_rows.hpp"

#include "../core/grid.hpp"
#include "../core/row_sum.cuh"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256, kRowsPerBlock = kBlock / unsigned(kRowLanes);

__device__ double row_length(const float* row, unsigned D) {
  return sqrt(warp_row_sum(D, [=](unsigned d) { return double(row[d]) * double(row[d]); }));
}

__global__ void unit_rows_kernel(float* output,            // (N, D), may be input
                                 const float* input,       // (N, D)
                                 const int32_t* poisoned,  // (1), or null
                                 int64_t N, unsigned D) {
  if (poisoned != nullptr && *poisoned != 0) return;
  const unsigned lane = threadIdx.x % unsigned(kRowLanes), warp = threadIdx.x / unsigned(kRowLanes);
  for (int64_t n = int64_t(blockIdx.x) * kRowsPerBlock + warp; n < N;
       n += int64_t(gridDim.x) * kRowsPerBlock) {
    const double length = row_length(input + n * D, D);
    const double inverse = 1.0 / (length < kMinimumLength ? kMinimumLength : length);
    for (unsigned d = lane; d < D; d += unsigned(kRowLanes))
      output[n * D + d] = float(double(input[n * D + d]) * inverse);
  }
}

__global__ void unit_rows_backward_kernel(float* d_input,         // (N, D), may be d_output
                                          const float* d_output,  // (N, D)
                                          const float* input,     // (N, D)
                                          int64_t N, unsigned D) {
  const unsigned lane = threadIdx.x % unsigned(kRowLanes), warp = threadIdx.x / unsigned(kRowLanes);
  for (int64_t n = int64_t(blockIdx.x) * kRowsPerBlock + warp; n < N;
       n += int64_t(gridDim.x) * kRowsPerBlock) {
    const float *row = input + n * D, *gradient = d_output + n * D;
    const double length = row_length(row, D);
    const double inverse = length < kMinimumLength ? 0.0 : 1.0 / length;
    const double along =
        inverse * warp_row_sum(D, [=](unsigned d) { return double(gradient[d]) * double(row[d]); });
    for (unsigned d = lane; d < D; d += unsigned(kRowLanes))
      d_input[n * D + d] = float((double(gradient[d]) - along * (double(row[d]) * inverse)) * inverse);
  }
}

}  // namespace

void run_cuda(const UnitRowsOp& op, Stream stream) {
  const int64_t N = op.input[0];
  if (op.input.size() == 0) return;
  const unsigned D = size_in_32_bits("unit_rows", op.input[1]);
  launch("unit_rows", unit_rows_kernel, {elementwise_grid(N, kRowsPerBlock), kBlock}, stream, op.output.data,
         op.input.data, op.poisoned.data, N, D);
}

void run_cuda(const UnitRowsBackwardOp& op, Stream stream) {
  const int64_t N = op.input[0];
  if (op.input.size() == 0) return;
  const unsigned D = size_in_32_bits("unit_rows backward", op.input[1]);
  launch("unit_rows_backward", unit_rows_backward_kernel, {elementwise_grid(N, kRowsPerBlock), kBlock},
         stream, op.d_input.data, op.d_output.data, op.input.data, N, D);
}

}  // namespace vqlab
