// Scores s_k = x.c_k - |c_k|^2 / 2 from fp16 products on the tensor cores (mma.sync), rounded as
// lookup_halves.cuh says, with the argmax in the epilogue. Rows whose best two scores are too close for that
// are decided by score64 (lookup_recheck.cu). Ties: the lowest code.
//
// Mapping: a block owns 128 rows and passes over the codes, 128 at a time, in slabs of 32 dimensions that
// cp.async brings three slabs ahead, the norms with the last; 4 x 2 warps own 32 x 64 scores each. Up to D =
// 256 a warp rounds its rows into shared memory, 4 at a time; beyond, a kernel of its own does, and rows
// come in slabs as codes do. Traffic: N * D floats of latents, twice, K * D halves of codebook per block,
// from L2; beyond D = 256 as many of latents for each 128 codes. Shared memory: 48 KB and 256 bytes a
// dimension, or 87 KB: two blocks on an H100. Wins: on an A100; on Hopper wgmma should, for large D. Needs:
// sm_80. Compiled, not yet run on a GPU.
#include "../../core/ptx.cuh"
#include "../lookup_halves.cuh"

namespace vqlab {
namespace {

constexpr int kBlockN = 128, kBlockK = 128, kBlock = 256, kStages = 4;
constexpr int kWarpN = 32, kWarpK = 64, kWarpsK = kBlockK / kWarpK;
constexpr int kMmaN = 16, kMmaK = 8, kStep = 16;  // rows, codes and dimensions of one product
constexpr int kSlab = 32;                         // dimensions in a stage
constexpr int kPad = 8;                           // halves behind a row: eight rows of a matrix hit 32 banks
constexpr int kStageRow = kSlab + kPad;
constexpr int kTilesN = kWarpN / kMmaN, kTilesK = kWarpK / kMmaK;
constexpr int kParts = kSlab / 8;  // of 16 bytes, in a row of a slab
constexpr int kPartRows = kBlock / kParts;
constexpr int64_t kResidentDims = 256;  // up to here two blocks fit with their rows on an H100
static_assert(kBlockN / kWarpN * kWarpsK * 32 == kBlock && kPackCodes % kBlockK == 0);
static_assert(kBlockN % kPartRows == 0 && kBlockK % kPartRows == 0);
using Top = SlottedTopTwo<2 * kTilesK>;

struct alignas(16) Stage {
  __half codes[kBlockK][kStageRow];
  float norms[kBlockK];  // half norms of the codes, with the last slab of their dimensions
};
struct alignas(16) RowStage {
  __half rows[kBlockN][kStageRow];
};

int64_t shared_bytes(int64_t D, bool resident) {
  return kStages * int64_t(sizeof(Stage)) + (resident
                                                 ? kBlockN * (half_dims(D) + kPad) * int64_t(sizeof(__half))
                                                 : kStages * int64_t(sizeof(RowStage)));
}
bool fits(int64_t D, bool resident) {
  constexpr int64_t kStatic = 8 * 1024;
  return shared_bytes(D, resident) + kStatic <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}
bool is_resident(int64_t D) { return D <= kResidentDims && fits(D, true); }

// Asks for dimensions [dim, dim + kSlab) of rows [first, first + kRows) of halves (count, half_D).
template <int kRows>
__device__ inline void load_slab(__half (&slab)[kRows][kStageRow], const __half* halves, int64_t first,
                                 int64_t count, int dim, int half_D) {
  const int row = int(threadIdx.x) / kParts, column = int(threadIdx.x) % kParts * 8;
  if (dim + column >= half_D) return;  // nobody multiplies what lies behind the last step
#pragma unroll
  for (int i = row; i < kRows; i += kPartRows)
    ptx::copy_16_async(&slab[i][column], halves + (first + i) * half_D + dim + column, first + i < count);
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

// Enters the scores of the warp's 64 codes, whose half norms are `norms`.
__device__ inline void compare(Top (&top)[kTilesN][2], const float (&scores)[kTilesN][kTilesK][4],
                               const float (&unscale)[kTilesN][2], const float* norms, int32_t group) {
  float before[kTilesN][2];
#pragma unroll
  for (int i = 0; i < kTilesN; ++i)
    for (int h = 0; h < 2; ++h) before[i][h] = top[i][h].best;
#pragma unroll
  for (int j = 0; j < kTilesK; ++j) {
    const float2 norm = *reinterpret_cast<const float2*>(norms + j * kMmaK + threadIdx.x % 4 * 2);
    const float low = Top::start(norm.x), high = Top::start(norm.y);
#pragma unroll
    for (int i = 0; i < kTilesN; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        top[i][h].add(Top::slotted(fmaf(scores[i][j][2 * h], unscale[i][h], low), unsigned(2 * j)),
                      Top::slotted(fmaf(scores[i][j][2 * h + 1], unscale[i][h], high), unsigned(2 * j + 1)));
  }
#pragma unroll
  for (int i = 0; i < kTilesN; ++i)
    for (int h = 0; h < 2; ++h) top[i][h].end_group(before[i][h], group);
}

template <bool kResident>
__global__ void __launch_bounds__(kBlock, 2)
    lookup_mma_sync_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                           unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                           const float* latents /*(N, D)*/,
                           const __half* half_latents /*(N, half_D) or null*/,
                           const HalfRow* half_rows /*(N) or null*/, const __half* half_codes /*(K, half_D)*/,
                           const float* half_norms /*(packed_K)*/, const float* pack_norms /*(norm_blocks)*/,
                           const float* loss_norms /*(norm_blocks)*/, int64_t N, int K, int D, int half_D,
                           int64_t norm_blocks) {
  VQ_DYN_SHARED(16, memory);
  VQ_SHARED(HalfRow, rows, [kBlockN]);
  VQ_SHARED(TopTwo, tops, [kBlockN][kWarpsK]);
  Stage* const stages = reinterpret_cast<Stage*>(memory);
  RowStage* const row_stages = reinterpret_cast<RowStage*>(stages + kStages);  // streamed
  __half* const resident_rows = reinterpret_cast<__half*>(stages + kStages);   // resident, ...
  const int row_stride = kResident ? half_D + kPad : kStageRow;                // ... [kBlockN][row_stride]
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  const int64_t first_row = int64_t(blockIdx.x) * kBlockN;

  // The slab that is asked for next, and its stage.
  int next_code = 0, next_dim = 0, next_stage = 0;
  const auto load_ahead = [&] {
    if (next_code < K) {
      load_slab(stages[next_stage].codes, half_codes, next_code, K, next_dim, half_D);
      if (!kResident) load_slab(row_stages[next_stage].rows, half_latents, first_row, N, next_dim, half_D);
      next_dim += kSlab;
      if (next_dim >= half_D) {
        if (threadIdx.x < kBlockK / 4)
          ptx::copy_16_async(stages[next_stage].norms + threadIdx.x * 4,
                             half_norms + next_code + threadIdx.x * 4, true);
        next_dim = 0, next_code += kBlockK;
      }
      next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
    }
    ptx::copies_commit();  // an empty group behind the end: the waits count groups
  };
  for (int i = 0; i < kStages - 1; ++i) load_ahead();

  // Behind the end, row N - 1 again.
  const float largest = warp_largest(pack_norms, norm_blocks);
  if constexpr (kResident) {
    constexpr int kRowLanes = 8, kRowsAtOnce = 32 / kRowLanes;
    const float code_scale = half_scale(largest);
    for (int i = warp * kRowsAtOnce; i < kBlockN; i += kBlock / kRowLanes) {
      const int row = i + lane / kRowLanes;
      const HalfRow rounded = round_row<kRowLanes>(
          latents + min(first_row + row, N - 1) * D, D, half_D, code_scale, [&](int d, __half2 pair) {
            *reinterpret_cast<__half2*>(resident_rows + row * row_stride + d) = pair;
          });
      if (lane % kRowLanes == 0) rows[row] = rounded;
    }
  } else {
    if (threadIdx.x < kBlockN) rows[threadIdx.x] = half_rows[min(first_row + threadIdx.x, N - 1)];
  }
  __syncthreads();  // the rows are stored before they are multiplied

  // The lane's scores: of rows warp_row + g + 8 h of each tile of 16, and codes warp_code + 2 t, + 1 of
  // each 8.
  const int warp_row = warp / kWarpsK * kWarpN, warp_code = warp % kWarpsK * kWarpK, g = lane / 4,
            t = lane % 4;
  Top top[kTilesN][2];
  float unscale[kTilesN][2];
  for (int i = 0; i < kTilesN; ++i)
    for (int h = 0; h < 2; ++h) {
      top[i][h] = Top::none();
      unscale[i][h] = rows[warp_row + i * kMmaN + h * 8 + g].unscale;
    }

  int stage = 0;
  for (int first_code = 0; first_code < K; first_code += kBlockK) {
    float scores[kTilesN][kTilesK][4] = {};
    const float* norms = nullptr;
    for (int d = 0; d < half_D; d += kSlab) {
      ptx::copies_wait<kStages - 2>();
      __syncthreads();  // the slab is there for all, and all have read the one before
      load_ahead();
      const __half* a =
          kResident ? resident_rows + warp_row * row_stride + d : &row_stages[stage].rows[warp_row][0];
      const __half* b = &stages[stage].codes[warp_code][0];
      multiply_step(scores, a, row_stride, b);
      if (d + kStep < half_D) multiply_step(scores, a + kStep, row_stride, b + kStep);
      norms = stages[stage].norms;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    compare(top, scores, unscale, norms + warp_code, first_code + warp_code);
  }

  const ErrorBound bound = error_bound(largest, D);
  const float loss_norm = warp_largest(loss_norms, norm_blocks);
  for (int i = 0; i < kTilesN; ++i)
    for (int h = 0; h < 2; ++h) {
      const int slot = top[i][h].slot();
      TopTwo best = {top[i][h].best, top[i][h].second, top[i][h].group + slot / 2 * kMmaK + t * 2 + slot % 2};
      best.merge_lanes(1);
      best.merge_lanes(2);
      if (t == 0) tops[warp_row + i * kMmaN + h * 8 + g][warp % kWarpsK] = best;
    }
  __syncthreads();  // the best scores of all warps are stored before a thread settles its row
  if (threadIdx.x >= kBlockN) return;
  TopTwo best = tops[threadIdx.x][0];
  for (int column = 1; column < kWarpsK; ++column) best.merge(tops[threadIdx.x][column]);
  const HalfRow& own = rows[threadIdx.x];
  const int64_t row = first_row + threadIdx.x;
  settle_row({codes, first_bad_row, doubtful_count, doubtful}, row < N, int32_t(row), best, own.square,
             latents + row * D, D, bound,
             half_error(own, loss_norm, D, bound) + Top::error(bound.norm(own.square), bound));
}

// What stands in LookupWork::rest, in bytes.
int64_t rest_bytes(int64_t N, int64_t K, int64_t D) {
  return half_codes_bytes(K, D) + (is_resident(D) ? 0 : half_latents_bytes(N, D));
}

void run_mma_sync(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const LookupWork work = prepare_lookup(op, stream);
  const HalfCodes codes = half_codes(work.rest.data, K, D);
  pack_half_codes(op, work, codes, stream);
  const bool resident = is_resident(D);
  HalfLatents rows{};
  if (!resident) {
    rows = half_latents(work.rest.data + half_codes_bytes(K, D), N, D);
    pack_half_latents(op, work, rows, stream);
  }
  launch("lookup_mma_sync", resident ? lookup_mma_sync_kernel<true> : lookup_mma_sync_kernel<false>,
         {unsigned((N + kBlockN - 1) / kBlockN), unsigned(kBlock), size_t(shared_bytes(D, resident))}, stream,
         op.codes.data, reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count,
         work.doubtful, op.latents.data, rows.latents, rows.rows, codes.codes, work.half_norms,
         work.pack_norms, codes.loss_norms, N, int(K), int(D), int(half_dims(D)), work.norm_blocks());
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
          return K <= int64_t(1) << 30 && D <= int64_t(1) << 20 && compute_capability() >= 80 &&
                 (is_resident(D) || fits(D, false));
        },
    .scratch_bytes = [](int64_t N, int64_t K,
                        int64_t D) { return lookup_work_bytes(N, K, D, rest_bytes(N, K, D)); },
    .run = run_mma_sync,
};

}  // namespace vqlab
