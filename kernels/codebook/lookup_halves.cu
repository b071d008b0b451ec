// The codebook of a tensor-core lookup, rounded to fp16. Mapping: a block of 8 warps rounds 32 codes, a warp
// one at a time. Traffic: K * D floats read, half of that written; every block reads all pack_norms. Shared
// memory: 160 bytes. Needs: nothing. Measured: not yet run on a GPU.
#include "lookup_halves.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32;

__global__ void __launch_bounds__(kBlock)
    lookup_half_codes_kernel(__half* halves /*(K, half_D)*/, float* loss_norms /*(gridDim)*/,
                             const float* codebook /*(K, D)*/, const float* pack_norms /*(norm_blocks)*/,
                             int64_t K, int D, int half_D, int64_t norm_blocks) {
  VQ_SHARED(float, warp_largest, [kWarps]);
  const float scale = half_scale(block_largest(pack_norms, norm_blocks)), back = 1.0f / scale;
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  float largest = 0.0f;
  for (int i = warp; i < int(kPackBlockCodes); i += kWarps) {
    const int64_t k = int64_t(blockIdx.x) * kPackBlockCodes + i;
    if (k >= K) break;
    float loss_square = 0.0f;
    for (int d = lane; d < half_D; d += 32) {
      const float c = d < D ? codebook[k * D + d] : 0.0f;
      const __half rounded = __float2half_rn(c * scale);
      const float loss = c - __half2float(rounded) * back;
      loss_square = fmaf(loss, loss, loss_square);
      halves[k * half_D + d] = rounded;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2)
      loss_square += __shfl_xor_sync(0xffffffffu, loss_square, lanes);
    largest = fmaxf(largest, loss_square);
  }
  if (lane == 0) warp_largest[warp] = largest;
  __syncthreads();  // the largest of every warp is stored before one thread compares them
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kWarps; ++i) largest = fmaxf(largest, warp_largest[i]);
  loss_norms[blockIdx.x] = error_bound(0.0f, D).norm(largest);
}

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t code_bytes(int64_t K, int64_t D) { return padded(K * half_dims(D) * int64_t(sizeof(__half))); }

}  // namespace

int64_t half_codes_bytes(int64_t K, int64_t D) {
  const int64_t norms = (K + kPackCodes - 1) / kPackCodes * (kPackCodes / kPackBlockCodes);
  return code_bytes(K, D) + padded(norms * int64_t(sizeof(float)));
}

HalfCodes half_codes(std::byte* memory, int64_t K, int64_t D) {
  return {reinterpret_cast<__half*>(memory), reinterpret_cast<float*>(memory + code_bytes(K, D))};
}

void pack_half_codes(const LookupOp& op, const LookupWork& work, const HalfCodes& halves, Stream stream) {
  const int64_t K = op.codebook[0], D = op.codebook[1];
  launch("lookup_half_codes", lookup_half_codes_kernel, {unsigned(work.norm_blocks()), unsigned(kBlock)},
         stream, halves.codes, halves.loss_norms, op.codebook.data, work.pack_norms, K, int(D),
         int(half_dims(D)), work.norm_blocks());
}

}  // namespace vqlab
