// Scores s_k = x.c_k - |c_k|^2 / 2 from fp16 products on the tensor cores (mma.sync), rounded as
// lookup_halves.cuh says, with the argmax in the epilogue. Rows whose best two scores are too close for that
// are decided by score64 (lookup_recheck.cu). Ties: the lowest code.
// Mapping: a block owns 128 rows, rounds them into shared memory once, and passes over the codes, 128 at a
// time, in slabs of 64 dimensions that cp.async brings two slabs ahead; 4 x 2 warps own 32 x 64 scores each.
// Traffic: N * D floats of latents, twice; K * D halves of codebook per block, from L2. Shared memory: 61 KB
// and 256 bytes for each dimension. Needs: sm_80; D up to what fits, 416 on an A100, 640 on an H100.
// Measured: not yet run on a GPU.
#include "../../core/ptx.cuh"
#include "../lookup_halves.cuh"

namespace vqlab {
namespace {

constexpr int kBlockN = 128, kBlockK = 128, kBlock = 256, kStages = 3;
constexpr int kWarpN = 32, kWarpK = 64, kWarpsK = kBlockK / kWarpK;
constexpr int kMmaN = 16, kMmaK = 8, kStep = 16;  // rows, codes and dimensions of one product
constexpr int kSlab = 64;                         // dimensions in a stage
constexpr int kPad = 8;                           // halves behind a row: eight rows of a matrix hit 32 banks
constexpr int kStageRow = kSlab + kPad, kStageHalves = kBlockK * kStageRow;
constexpr int kTilesN = kWarpN / kMmaN, kTilesK = kWarpK / kMmaK;
static_assert(kBlockN / kWarpN * kWarpsK * 32 == kBlock && kPackCodes % kBlockK == 0);

int64_t shared_bytes(int64_t D) {
  return (kBlockN * (half_dims(D) + kPad) + kStages * kStageHalves) * int64_t(sizeof(__half));
}

// Asks for slab `slab` of the codes: `slabs` of them for each kBlockK codes.
__device__ inline void load_slab(__half* stage, const __half* codes, int slab, int slabs, int K, int half_D) {
  const int first_code = slab / slabs * kBlockK, first_dim = slab % slabs * kSlab;
  constexpr int kParts = kSlab / 8;  // of 16 bytes, in a row
  for (int i = int(threadIdx.x); i < kBlockK * kParts; i += kBlock) {
    const int code = first_code + i / kParts, dim = first_dim + i % kParts * 8;
    if (dim < half_D)
      ptx::copy_16_async(stage + i / kParts * kStageRow + i % kParts * 8,
                         codes + int64_t(code) * half_D + dim, code < K);
  }
}

// scores += rows x codes over one step of dimensions; `rows` and `codes` point to the warp's first.
__device__ inline void multiply_step(float (&scores)[kTilesN][kTilesK][4], const __half* rows, int row_stride,
                                     const __half* codes) {
  const int matrix = int(threadIdx.x % 32 / 8), row = int(threadIdx.x % 8);
  uint32_t a[kTilesN][4];
#pragma unroll
  for (int i = 0; i < kTilesN; ++i)
    ptx::load_matrices(a[i], rows + (i * kMmaN + matrix % 2 * 8 + row) * row_stride + matrix / 2 * 8);
#pragma unroll
  for (int j = 0; j < kTilesK; j += 2) {
    uint32_t b[4];
    ptx::load_matrices(b, codes + (j * kMmaK + matrix / 2 * 8 + row) * kStageRow + matrix % 2 * 8);
#pragma unroll
    for (int i = 0; i < kTilesN; ++i) {
      ptx::mma_f16(scores[i][j], a[i], {b[0], b[1]});
      ptx::mma_f16(scores[i][j + 1], a[i], {b[2], b[3]});
    }
  }
}

__global__ void __launch_bounds__(kBlock, 2)
    lookup_mma_sync_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                           unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                           const float* latents /*(N, D)*/, const __half* half_codes /*(K, half_D)*/,
                           const float* half_norms /*(packed_K)*/, const float* pack_norms /*(norm_blocks)*/,
                           const float* loss_norms /*(norm_blocks)*/, int64_t N, int K, int D, int half_D,
                           int64_t norm_blocks) {
  VQ_DYN_SHARED(16, memory);
  VQ_SHARED(HalfRow, rows, [kBlockN]);
  VQ_SHARED(TopTwo, tops, [kBlockN][kWarpsK]);
  const int row_stride = half_D + kPad;
  __half* const half_rows = reinterpret_cast<__half*>(memory);
  __half* const stages = half_rows + kBlockN * row_stride;
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  const int64_t first_row = int64_t(blockIdx.x) * kBlockN;

  const int slabs = (half_D + kSlab - 1) / kSlab, all_slabs = (K + kBlockK - 1) / kBlockK * slabs;
  const auto load_ahead = [&](int slab) {
    if (slab < all_slabs)
      load_slab(stages + slab % kStages * kStageHalves, half_codes, slab, slabs, K, half_D);
    ptx::copies_commit();  // an empty group behind the end: the waits count groups
  };
  for (int slab = 0; slab < kStages - 1; ++slab) load_ahead(slab);

  const ErrorBound bound = block_error_bound(pack_norms, norm_blocks, D);
  const float code_scale = half_scale(bound.largest);
  __syncthreads();  // every thread has the largest norm before another is looked for
  const float loss_norm = block_largest(loss_norms, norm_blocks);
  for (int row = warp; row < kBlockN; row += kBlock / 32) {  // behind the end, row N - 1 again
    const float* latent = latents + min(first_row + row, N - 1) * D;
    const HalfRow rounded = round_row(latent, D, half_D, code_scale, [&](int d, __half2 pair) {
      *reinterpret_cast<__half2*>(half_rows + row * row_stride + d) = pair;
    });
    if (lane == 0) rows[row] = rounded;
  }
  __syncthreads();  // the rows are stored before they are multiplied

  // The lane's scores: of rows warp_row + g + 8 h of each tile of 16, and codes warp_code + 2 t, + 1 of
  // each 8.
  const int warp_row = warp / kWarpsK * kWarpN, warp_code = warp % kWarpsK * kWarpK, g = lane / 4,
            t = lane % 4;
  TopTwo top[kTilesN][2];
  float unscale[kTilesN][2];
  for (int i = 0; i < kTilesN; ++i)
    for (int h = 0; h < 2; ++h) {
      top[i][h] = TopTwo::none();
      unscale[i][h] = rows[warp_row + i * kMmaN + h * 8 + g].unscale;
    }

  int slab = 0;
  for (int first_code = 0; first_code < K; first_code += kBlockK) {
    float scores[kTilesN][kTilesK][4] = {};
    for (int d = 0; d < half_D; d += kSlab, ++slab) {
      ptx::copies_wait<kStages - 2>();
      __syncthreads();  // the slab is there for all, and all have read the one before
      load_ahead(slab + kStages - 1);
      const __half* stage = stages + slab % kStages * kStageHalves;
      for (int step = 0; step < min(kSlab, half_D - d); step += kStep)
        multiply_step(scores, half_rows + warp_row * row_stride + d + step, row_stride,
                      stage + warp_code * kStageRow + step);
    }
#pragma unroll
    for (int j = 0; j < kTilesK; ++j) {
      const int code = first_code + warp_code + j * kMmaK + 2 * t;
      const float2 start = *reinterpret_cast<const float2*>(half_norms + code);
#pragma unroll
      for (int i = 0; i < kTilesN; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          top[i][h].add(fmaf(scores[i][j][2 * h], unscale[i][h], start.x), code);
          top[i][h].add(fmaf(scores[i][j][2 * h + 1], unscale[i][h], start.y), code + 1);
        }
    }
  }

  for (int i = 0; i < kTilesN; ++i)
    for (int h = 0; h < 2; ++h) {
      top[i][h].merge_lanes(1);
      top[i][h].merge_lanes(2);
      if (t == 0) tops[warp_row + i * kMmaN + h * 8 + g][warp % kWarpsK] = top[i][h];
    }
  __syncthreads();  // the best scores of all warps are stored before a thread settles its row
  if (threadIdx.x >= kBlockN) return;
  TopTwo best = tops[threadIdx.x][0];
  for (int column = 1; column < kWarpsK; ++column) best.merge(tops[threadIdx.x][column]);
  const HalfRow& own = rows[threadIdx.x];
  const int64_t row = first_row + threadIdx.x;
  settle_row({codes, first_bad_row, doubtful_count, doubtful}, row < N, int32_t(row), best, own.square,
             latents + row * D, D, bound, half_error(own, loss_norm, D, bound));
}

void run_mma_sync(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const LookupWork work = prepare_lookup(op, stream);
  const HalfCodes halves = half_codes(work.rest.data, K, D);
  pack_half_codes(op, work, halves, stream);
  launch("lookup_mma_sync", lookup_mma_sync_kernel,
         {unsigned((N + kBlockN - 1) / kBlockN), unsigned(kBlock), size_t(shared_bytes(D))}, stream,
         op.codes.data, reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count,
         work.doubtful, op.latents.data, halves.codes, work.half_norms, work.pack_norms, halves.loss_norms, N,
         int(K), int(D), int(half_dims(D)), work.norm_blocks());
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_mma_sync;
const LookupVariant lookup_mma_sync = {
    .name = "mma_sync",
    .device = Device::cuda,
    .idea =
        "fp16 tensor-core scores (mma.sync) with the argmax in the epilogue; score64 where two are too close",
    .exact = true,
    .supports =
        [](int64_t, int64_t K, int64_t D) {
          constexpr int64_t kStatic = 8 * 1024;
          return K <= int64_t(1) << 30 && D <= 4096 && compute_capability() >= 80 &&
                 shared_bytes(D) + kStatic <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
        },
    .scratch_bytes = [](int64_t N, int64_t K,
                        int64_t D) { return lookup_work_bytes(N, K, D, half_codes_bytes(K, D)); },
    .run = run_mma_sync,
};

}  // namespace vqlab
