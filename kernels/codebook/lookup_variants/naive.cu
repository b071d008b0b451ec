// Score of every pair, s_k = x.c_k - |c_k|^2 / 2 in fp32, by one thread per row straight from global memory:
// the readable baseline. Rows whose best two scores are too close are decided by score64 (lookup_recheck.cu).
// Ties: the lowest code.
// Mapping: a thread owns a row; all threads of a block read the same code at the same time.
// Traffic: K * D floats of latents and K * D of the codebook per row, nearly all from L1 and L2.
// Shared memory: 128 bytes. Needs: nothing; any size and alignment to 4 bytes.
// Measured on an H200: 35.4 ms at (262144, 512, 64).
#include "../lookup_recheck.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 128;

__global__ void __launch_bounds__(kBlock)
    lookup_naive_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                        unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                        const float* latents /*(N, D)*/, const float* codebook /*(K, D)*/,
                        const float* half_norms /*(packed_K)*/, const float* pack_norms /*(norm_blocks)*/,
                        int64_t N, int64_t K, int64_t D, int64_t norm_blocks) {
  const ErrorBound bound = block_error_bound(pack_norms, norm_blocks, D);
  const int64_t row = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  const bool active = row < N;
  const float* latent = latents + (active ? row : 0) * D;

  TopTwo top = TopTwo::none();
  float square = 0.0f;
  for (int64_t d = 0; d < D; ++d) square = fmaf(latent[d], latent[d], square);
  for (int64_t k = 0; k < K; ++k) {
    float score = half_norms[k];
    for (int64_t d = 0; d < D; ++d) score = fmaf(latent[d], codebook[k * D + d], score);
    top.add(score, int32_t(k));
  }
  settle_row({codes, first_bad_row, doubtful_count, doubtful}, active, int32_t(row), top, square, latent, D,
             bound);
}

void run_naive(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const LookupWork work = prepare_lookup(op, stream);
  launch("lookup_naive", lookup_naive_kernel, {unsigned((N + kBlock - 1) / kBlock), unsigned(kBlock)}, stream,
         op.codes.data, reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count,
         work.doubtful, op.latents.data, op.codebook.data, work.half_norms, work.pack_norms, N, K, D,
         work.norm_blocks());
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_naive;
const LookupVariant lookup_naive = {
    .name = "naive",
    .device = Device::cuda,
    .idea = "one thread per latent, fp32 scores straight from global memory; score64 where two are too close",
    .exact = true,
    .supports = [](int64_t, int64_t, int64_t) { return true; },
    .scratch_bytes = [](int64_t N, int64_t K, int64_t D) { return lookup_work_bytes(N, K, D); },
    .run = run_naive,
};

}  // namespace vqlab
