// Scores from a library's fp32 product, latents times codebook, in blocks of rows, and an argmax over each
// row of it: what a user without a fused kernel runs. s_k = x.c_k - |c_k|^2 / 2. Rows whose best two scores
// are too close are decided by score64 (lookup_recheck.cu). Ties: the lowest code. Mapping: of the argmax, a
// warp owns a row of the product, 4 neighbouring scores to a lane. Traffic: N * K floats written and read
// again, in pieces that stay in L2 (32 MB; for more than 65536 codes up to 256 MB); N * D of latents twice.
// Shared memory: 128 bytes beside the library's. Needs: cuBLASLt; N, K, D below 2^31. Measured: not yet run
// on a GPU.
#include <algorithm>

#include "../gemm_product.hpp"
#include "../lookup_recheck.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256;
constexpr int kRows = kBlock / 32;                    // a warp each
constexpr int64_t kProductFloats = int64_t(8) << 20;  // of one block of rows: they stay in L2 ...
constexpr int64_t kLeastRows = 128;  // ... unless that is fewer rows than a product does well

// Rows [first_row, first_row + rows) of the latents, whose product is at hand.
template <int kWidth>
__global__ void __launch_bounds__(kBlock)
    lookup_gemm_argmax_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                              unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                              const float* product /*(rows, K)*/, const float* latents /*(N, D)*/,
                              const float* half_norms /*(packed_K)*/,
                              const float* pack_norms /*(norm_blocks)*/, int64_t first_row, int64_t rows,
                              int64_t K, int64_t D, int64_t norm_blocks) {
  const ErrorBound bound = block_error_bound(pack_norms, norm_blocks, D);
  const int lane = int(threadIdx.x % 32);
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / 32;
  if (row >= rows) return;  // the same in the whole warp, and no barrier follows
  const float* products = product + row * K;
  const float* latent = latents + (first_row + row) * D;

  TopTwo top = TopTwo::none();
  for (int64_t k = lane * kWidth; k < K; k += 32 * kWidth) {
    if constexpr (kWidth == 4) {
      const float4 x = *reinterpret_cast<const float4*>(products + k);
      const float4 start = *reinterpret_cast<const float4*>(half_norms + k);
      top.add(x.x + start.x, int32_t(k));
      top.add(x.y + start.y, int32_t(k + 1));
      top.add(x.z + start.z, int32_t(k + 2));
      top.add(x.w + start.w, int32_t(k + 3));
    } else {
      top.add(products[k] + half_norms[k], int32_t(k));
    }
  }
  float square = 0.0f;
  for (int64_t d = lane; d < D; d += 32) square = fmaf(latent[d], latent[d], square);
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    top.merge_lanes(lanes);
    square += __shfl_xor_sync(0xffffffffu, square, lanes);
  }
  settle_row({codes, first_bad_row, doubtful_count, doubtful}, lane == 0, int32_t(first_row + row), top,
             square, latent, D, bound);
}

int64_t rows_at_once(int64_t N, int64_t K) {
  const int64_t least = std::min(kLeastRows, 8 * kProductFloats / K);
  return std::clamp(std::max(kProductFloats / K, least), int64_t(1), N);
}

int64_t product_bytes(int64_t N, int64_t K) {
  return (rows_at_once(N, K) * K * int64_t(sizeof(float)) + 255) / 256 * 256;
}

int64_t workspace_bytes(int64_t N, int64_t K) { return gemm_workspace_bytes(rows_at_once(N, K), K); }

void run_gemm(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1], step = rows_at_once(N, K);
  const LookupWork work = prepare_lookup(op, stream);
  float* product = reinterpret_cast<float*>(work.rest.data);
  const View<std::byte> workspace(work.rest.data + product_bytes(N, K), {workspace_bytes(N, K)});
  const auto argmax = K % 4 == 0 ? lookup_gemm_argmax_kernel<4> : lookup_gemm_argmax_kernel<1>;
  for (int64_t first_row = 0; first_row < N; first_row += step) {
    const int64_t rows = std::min(step, N - first_row);
    gemm_product(product, op.latents.data + first_row * D, op.codebook.data, rows, K, D, workspace, stream);
    launch("lookup_gemm_argmax", argmax, {unsigned((rows + kRows - 1) / kRows), unsigned(kBlock)}, stream,
           op.codes.data, reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count,
           work.doubtful, product, op.latents.data, work.half_norms, work.pack_norms, first_row, rows, K, D,
           work.norm_blocks());
  }
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_gemm;
const LookupVariant lookup_gemm = {
    .name = "gemm",
    .device = Device::cuda,
    .idea = "cuBLASLt's fp32 product in blocks of rows, then an argmax; score64 where two are too close",
    .exact = true,
    .supports =
        [](int64_t N, int64_t K, int64_t D) {
          constexpr int64_t kMost = int64_t(1) << 31;
          return N < kMost && K < kMost && D < kMost && gemm_product_available();
        },
    .scratch_bytes =
        [](int64_t N, int64_t K, int64_t D) {
          return lookup_work_bytes(N, K, D, product_bytes(N, K) + workspace_bytes(N, K));
        },
    .run = run_gemm,
};

}  // namespace vqlab
