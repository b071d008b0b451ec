// The operands of a tensor-core lookup, rounded to fp16. Mapping: codes, a block of 8 warps rounds 32, a warp
// one at a time; latents, 8 lanes round a row. Blocks loop, since each looks for the largest norm first.
// Traffic: codes, K * D floats read, half of that written; latents, N * D floats read twice (the second time
// from L1), half of that written. Shared memory: codes 160 bytes, latents 128. Needs: nothing. Measured: not
// yet run on a GPU.
#include <algorithm>

#include "lookup_halves.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kRowLanes = 8, kBlockRows = kBlock / kRowLanes;
constexpr int64_t kMostBlocks = 528;  // 4 for each multiprocessor of an H100

__global__ void __launch_bounds__(kBlock)
    lookup_half_codes_kernel(__half* halves /*(K, half_D)*/, float* loss_norms /*(norm_blocks)*/,
                             const float* codebook /*(K, D)*/, const float* pack_norms /*(norm_blocks)*/,
                             int64_t K, int D, int half_D, int64_t norm_blocks) {
  VQ_SHARED(float, warp_losses, [kWarps]);
  const float scale = half_scale(block_largest(pack_norms, norm_blocks)), back = 1.0f / scale;
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  for (int block = int(blockIdx.x); block < int(norm_blocks); block += int(gridDim.x)) {
    float largest = 0.0f;
    for (int i = warp; i < int(kPackBlockCodes); i += kWarps) {
      const int64_t k = int64_t(block) * kPackBlockCodes + i;
      if (k >= K) break;
      float loss_square = 0.0f;
#pragma unroll 2
      for (int d = lane; d < half_D; d += 32) {
        const float c = d < D ? codebook[k * D + d] : 0.0f;
        const __half rounded = __float2half_rn(c * scale);
        const float loss = c - __half2float(rounded) * back;
        loss_square = fmaf(loss, loss, loss_square);
        halves[k * half_D + d] = rounded;
      }
      largest = fmaxf(largest, add_neighbours<32>(loss_square));
    }
    if (lane == 0) warp_losses[warp] = largest;
    __syncthreads();  // the largest of every warp is stored before one thread compares them
    if (threadIdx.x == 0) {
      for (int i = 1; i < kWarps; ++i) largest = fmaxf(largest, warp_losses[i]);
      loss_norms[block] = error_bound(0.0f, D).norm(largest);
    }
    __syncthreads();  // they have been compared before those of the next codes are stored
  }
}

__global__ void __launch_bounds__(kBlock)
    lookup_half_latents_kernel(__half* halves /*(N, half_D)*/, HalfRow* rows /*(N)*/,
                               const float* latents /*(N, D)*/, const float* pack_norms /*(norm_blocks)*/,
                               int64_t N, int D, int half_D, int64_t norm_blocks) {
  const float code_scale = half_scale(block_largest(pack_norms, norm_blocks));
  const int64_t stride = int64_t(gridDim.x) * kBlockRows;
  for (int64_t first = int64_t(blockIdx.x) * kBlockRows; first < N; first += stride) {
    const int64_t row = first + threadIdx.x / kRowLanes;
    // Behind the end row N - 1 is rounded again, and not stored.
    const HalfRow rounded =
        round_row<kRowLanes>(latents + min(row, N - 1) * D, D, half_D, code_scale, [&](int d, __half2 pair) {
          if (row < N) *reinterpret_cast<__half2*>(halves + row * half_D + d) = pair;
        });
    if (row < N && threadIdx.x % kRowLanes == 0) rows[row] = rounded;
  }
}

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t half_bytes(int64_t rows, int64_t D) { return padded(rows * half_dims(D) * int64_t(sizeof(__half))); }

}  // namespace

int64_t half_codes_bytes(int64_t K, int64_t D) {
  const int64_t norms = (K + kPackCodes - 1) / kPackCodes * (kPackCodes / kPackBlockCodes);
  return half_bytes(K, D) + padded(norms * int64_t(sizeof(float)));
}

HalfCodes half_codes(std::byte* memory, int64_t K, int64_t D) {
  return {reinterpret_cast<__half*>(memory), reinterpret_cast<float*>(memory + half_bytes(K, D))};
}

void pack_half_codes(const LookupOp& op, const LookupWork& work, const HalfCodes& halves, Stream stream) {
  const int64_t K = op.codebook[0], D = op.codebook[1];
  launch("lookup_half_codes", lookup_half_codes_kernel,
         {unsigned(std::min(work.norm_blocks(), kMostBlocks)), unsigned(kBlock)}, stream, halves.codes,
         halves.loss_norms, op.codebook.data, work.pack_norms, K, int(D), int(half_dims(D)),
         work.norm_blocks());
}

int64_t half_latents_bytes(int64_t N, int64_t D) {
  return half_bytes(N, D) + padded(N * int64_t(sizeof(HalfRow)));
}

HalfLatents half_latents(std::byte* memory, int64_t N, int64_t D) {
  return {reinterpret_cast<__half*>(memory), reinterpret_cast<HalfRow*>(memory + half_bytes(N, D))};
}

void pack_half_latents(const LookupOp& op, const LookupWork& work, const HalfLatents& halves, Stream stream) {
  const int64_t N = op.latents[0], D = op.latents[1];
  const int64_t blocks = std::min((N + kBlockRows - 1) / kBlockRows, kMostBlocks);
  launch("lookup_half_latents", lookup_half_latents_kernel, {unsigned(blocks), unsigned(kBlock)}, stream,
         halves.latents, halves.rows, op.latents.data, work.pack_norms, N, int(D), int(half_dims(D)),
         work.norm_blocks());
}

}  // namespace vqlab
