// Scores s_k = x.c_k - |c_k|^2 / 2 from fp16 products on the tensor cores (mma.sync), rounded as
// lookup_halves.cuh says, with the whole codebook in shared memory. Rows whose best two scores are too close
// for that are decided by score64 (lookup_recheck.cu). Ties: the lowest code.
//
// Mapping: as many blocks as the GPU holds at a time; each loads the codebook, and then its warps have
// nothing to do with each other: a warp takes 32 rows (16 beyond D = 64), rounds them into registers, asks
// for the next ones by cp.async, and passes over all codes, 64 at a time; one compares while another
// multiplies. Traffic: N * D floats of latents, once; K * D halves per block. Shared memory, with D' = D
// padded to 16, 32, 64 or 128: K (2 D' + 20) and, for the rows, 1024 (D' + 8) bytes, half of that beyond D =
// 64; 149 KB at (512, 64). Wins: the codebooks of VQ-VAEs, many rows. Needs: sm_80; D up to 128; what fits:
// 1024 codes of 64 on an H100. Predicted, H200: 45 us at (262144, 512, 64), bound by comparing. Compiled,
// not yet run on a GPU.
#include <algorithm>

#include "../../core/grid.hpp"
#include "../../core/ptx.cuh"
#include "../lookup_halves.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kMmaN = 16, kMmaK = 8, kStep = 16, kGroup = 64, kTilesK = kGroup / kMmaK;
constexpr int kPad = 8;  // halves behind a code, floats behind a row: what lanes read at once hits 32 banks
constexpr int64_t kMostDims = 128;
static_assert(kPackCodes % kGroup == 0);
using Top = SlottedTopTwo<2 * kTilesK>;

// Sizes for rows and codes padded to kSteps steps of 16 dimensions.
template <int kSteps>
struct Sizes {
  static constexpr int kDims = kSteps * kStep, kTilesN = kSteps <= 4 ? 2 : 1, kRows = kTilesN * kMmaN;
  static constexpr int kCodeRow = kDims + kPad, kRowFloats = kDims + kPad;
  static constexpr int kBlocks = kSteps <= 2 ? 2 : 1;  // that the registers of a multiprocessor hold
  static int64_t shared_bytes(int64_t packed_K) {
    return packed_K * int64_t(kCodeRow * sizeof(__half) + sizeof(float)) +
           kWarps * kRows * kRowFloats * int64_t(sizeof(float));
  }
};

// The rows of a warp as operands of products.
template <int kSteps>
struct Operands {
  uint32_t halves[Sizes<kSteps>::kTilesN][kSteps][4];
  HalfRow rows[Sizes<kSteps>::kTilesN][2];  // rows 16 i + 8 h + lane / 4

  static __device__ int row(int i, int h) { return i * kMmaN + h * 8 + int(threadIdx.x % 32 / 4); }
};

// Asks for rows [first, first + kRows) of the latents (N, D), row N - 1 behind the end, zeros behind D.
template <int kSteps, bool kVector>
__device__ inline void fetch_rows(float* buffer, const float* latents, int64_t first, int64_t N, int D) {
  using S = Sizes<kSteps>;
  const int lane = int(threadIdx.x % 32);
  constexpr int kWidth = kVector ? 4 : 1, kParts = S::kDims / kWidth;
  for (int i = lane; i < S::kRows * kParts; i += 32) {
    const int row = i / kParts, d = i % kParts * kWidth;
    const float* latent = latents + min(first + row, N - 1) * D;
    float* to = buffer + row * S::kRowFloats + d;
    if constexpr (kVector)
      ptx::copy_16_async(to, latent + d, d < D);
    else
      *to = d < D ? latent[d] : 0.0f;
  }
}

// Rounds the rows of the buffer; each with a scale of its own.
template <int kSteps>
__device__ inline void round_rows(Operands<kSteps>& to, const float* buffer, float code_scale) {
  using S = Sizes<kSteps>;
  const int t = int(threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < S::kTilesN; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* row = buffer + to.row(i, h) * S::kRowFloats + t * 2;
      float square = 0.0f, loss_square = 0.0f;
#pragma unroll
      for (int pair = 0; pair < 2 * kSteps; ++pair) {
        const float2 x = *reinterpret_cast<const float2*>(row + pair * 8);
        square = fmaf(x.x, x.x, fmaf(x.y, x.y, square));
      }
      square = add_neighbours<4>(square);
      const float scale = half_scale(sqrtf(square)), back = 1.0f / scale;
#pragma unroll
      for (int pair = 0; pair < 2 * kSteps; ++pair) {
        const float2 x = *reinterpret_cast<const float2*>(row + pair * 8);
        const __half2 rounded = __floats2half2_rn(x.x * scale, x.y * scale);
        const float low = x.x - __low2float(rounded) * back, high = x.y - __high2float(rounded) * back;
        loss_square = fmaf(low, low, fmaf(high, high, loss_square));
        to.halves[i][pair / 2][pair % 2 * 2 + h] = half_word(rounded);
      }
      to.rows[i][h] = {square, add_neighbours<4>(loss_square), back / code_scale};
    }
}

// Enters the scores of one group of codes; `codes` and `norms` point to its first.
template <int kSteps>
__device__ inline void pass_group(Top (&top)[Sizes<kSteps>::kTilesN][2], const Operands<kSteps>& rows,
                                  const __half* codes, const float* norms, int32_t group) {
  using S = Sizes<kSteps>;
  const int matrix = int(threadIdx.x % 32 / 8), row = int(threadIdx.x % 8);
  float scores[S::kTilesN][kTilesK][4] = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int j = 0; j < kTilesK; j += 2) {
      uint32_t b[4];
      ptx::load_matrices(
          b, codes + (j * kMmaK + matrix / 2 * 8 + row) * S::kCodeRow + step * kStep + matrix % 2 * 8);
#pragma unroll
      for (int i = 0; i < S::kTilesN; ++i) {
        ptx::mma_f16(scores[i][j], rows.halves[i][step], {b[0], b[1]});
        ptx::mma_f16(scores[i][j + 1], rows.halves[i][step], {b[2], b[3]});
      }
    }
  float before[S::kTilesN][2];
#pragma unroll
  for (int i = 0; i < S::kTilesN; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) before[i][h] = top[i][h].best;
#pragma unroll
  for (int j = 0; j < kTilesK; ++j) {
    const float2 norm = *reinterpret_cast<const float2*>(norms + j * kMmaK + threadIdx.x % 4 * 2);
    const float low = Top::start(norm.x), high = Top::start(norm.y);
#pragma unroll
    for (int i = 0; i < S::kTilesN; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        top[i][h].add(
            Top::slotted(fmaf(scores[i][j][2 * h], rows.rows[i][h].unscale, low), unsigned(2 * j)),
            Top::slotted(fmaf(scores[i][j][2 * h + 1], rows.rows[i][h].unscale, high), unsigned(2 * j + 1)));
  }
#pragma unroll
  for (int i = 0; i < S::kTilesN; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) top[i][h].end_group(before[i][h], group);
}

// Asks for the codebook: zeros behind half_D and K.
template <int kSteps>
__device__ inline void fetch_codes(__half* codes, float* norms, const __half* half_codes,
                                   const float* half_norms, int K, int half_D, int packed_K) {
  using S = Sizes<kSteps>;
  constexpr int kParts = S::kDims / 8;
  for (int i = int(threadIdx.x); i < packed_K * kParts; i += kBlock) {
    const int code = i / kParts, d = i % kParts * 8;
    ptx::copy_16_async(codes + code * S::kCodeRow + d, half_codes + int64_t(code) * half_D + d,
                       code < K && d < half_D);
  }
  for (int i = int(threadIdx.x) * 4; i < packed_K; i += kBlock * 4)
    ptx::copy_16_async(norms + i, half_norms + i, true);
}

template <int kSteps, bool kVector>
__global__ void __launch_bounds__(kBlock, Sizes<kSteps>::kBlocks)
    lookup_cb_resident_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                              unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                              const float* latents /*(N, D)*/, const __half* half_codes /*(K, half_D)*/,
                              const float* half_norms /*(packed_K)*/,
                              const float* pack_norms /*(norm_blocks)*/,
                              const float* loss_norms /*(norm_blocks)*/, int64_t N, int K, int D, int half_D,
                              int packed_K, int64_t norm_blocks) {
  using S = Sizes<kSteps>;
  VQ_DYN_SHARED(16, memory);
  const int warp = int(threadIdx.x / 32);
  __half* const shared_codes = reinterpret_cast<__half*>(memory);
  float* const shared_norms = reinterpret_cast<float*>(shared_codes + packed_K * S::kCodeRow);
  float* const buffer = shared_norms + packed_K + warp * S::kRows * S::kRowFloats;
  // Neighbouring tiles of rows go to different blocks, so that few rows are spread, too.
  const int64_t stride = int64_t(gridDim.x) * kWarps * S::kRows;
  int64_t first_row = (int64_t(warp) * gridDim.x + blockIdx.x) * S::kRows;

  fetch_codes<kSteps>(shared_codes, shared_norms, half_codes, half_norms, K, half_D, packed_K);
  if (first_row < N) fetch_rows<kSteps, kVector>(buffer, latents, first_row, N, D);
  ptx::copies_commit();
  const ErrorBound bound = error_bound(warp_largest(pack_norms, norm_blocks), D);
  const float loss_norm = warp_largest(loss_norms, norm_blocks), code_scale = half_scale(bound.largest);
  ptx::copies_wait<0>();
  __syncthreads();  // the codebook is there for all

  for (; first_row < N; first_row += stride) {
    Operands<kSteps> rows;
    round_rows(rows, buffer, code_scale);
    __syncwarp();  // the rows have been read before the next ones overwrite them
    if (first_row + stride < N) fetch_rows<kSteps, kVector>(buffer, latents, first_row + stride, N, D);
    ptx::copies_commit();

    Top top[S::kTilesN][2];
#pragma unroll
    for (int i = 0; i < S::kTilesN; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) top[i][h] = Top::none();
    for (int group = 0; group < K; group += kGroup)
      pass_group(top, rows, shared_codes + group * S::kCodeRow, shared_norms + group, group);

#pragma unroll
    for (int i = 0; i < S::kTilesN; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t row = first_row + rows.row(i, h);
        const HalfRow& own = rows.rows[i][h];
        const int slot = top[i][h].slot();
        TopTwo best = {top[i][h].best, top[i][h].second,
                       top[i][h].group + slot / 2 * kMmaK + int(threadIdx.x % 4) * 2 + slot % 2};
        best.merge_lanes(1);
        best.merge_lanes(2);
        settle_row({codes, first_bad_row, doubtful_count, doubtful}, threadIdx.x % 4 == 0 && row < N,
                   int32_t(row), best, own.square, latents + min(row, N - 1) * D, D, bound,
                   half_error(own, loss_norm, D, bound) + Top::error(bound.norm(own.square), bound));
      }
    ptx::copies_wait<0>();
    __syncwarp();  // the next rows are there for all lanes
  }
}

int64_t padded_codes(int64_t K) { return (K + kPackCodes - 1) / kPackCodes * kPackCodes; }

// For D dimensions: how many steps they are padded to.
int steps_of(int64_t D) { return D <= 16 ? 1 : D <= 32 ? 2 : D <= 64 ? 4 : 8; }

int64_t shared_bytes(int64_t K, int64_t D) {
  const int64_t codes = padded_codes(K);
  switch (steps_of(D)) {
    case 1:
      return Sizes<1>::shared_bytes(codes);
    case 2:
      return Sizes<2>::shared_bytes(codes);
    case 4:
      return Sizes<4>::shared_bytes(codes);
    default:
      return Sizes<8>::shared_bytes(codes);
  }
}

template <int kSteps>
void filter(const LookupOp& op, const LookupWork& work, const HalfCodes& halves, Stream stream) {
  using S = Sizes<kSteps>;
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const bool vector = D % 4 == 0 && aligned_to_16_bytes(op.latents.data);
  const int64_t bytes = S::shared_bytes(work.packed_K);
  constexpr int64_t kReserved = 1024;  // of shared memory, by CUDA, for each block
  const int64_t shared = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) + kReserved;
  const int64_t resident = device_attribute(cudaDevAttrMultiProcessorCount) *
                           std::clamp(shared / (bytes + kReserved), int64_t(1), int64_t(S::kBlocks));
  const int64_t blocks = std::min(resident, (N + S::kRows - 1) / S::kRows);
  launch("lookup_cb_resident",
         vector ? lookup_cb_resident_kernel<kSteps, true> : lookup_cb_resident_kernel<kSteps, false>,
         {unsigned(blocks), unsigned(kBlock), size_t(bytes)}, stream, op.codes.data,
         reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count, work.doubtful,
         op.latents.data, halves.codes, work.half_norms, work.pack_norms, halves.loss_norms, N, int(K),
         int(D), int(half_dims(D)), int(work.packed_K), work.norm_blocks());
}

void run_cb_resident(const LookupOp& op, Stream stream) {
  const LookupWork work = prepare_lookup(op, stream);
  const HalfCodes halves = half_codes(work.rest.data, op.codebook[0], op.codebook[1]);
  pack_half_codes(op, work, halves, stream);
  switch (steps_of(op.codebook[1])) {
    case 1:
      filter<1>(op, work, halves, stream);
      break;
    case 2:
      filter<2>(op, work, halves, stream);
      break;
    case 4:
      filter<4>(op, work, halves, stream);
      break;
    default:
      filter<8>(op, work, halves, stream);
  }
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_cb_resident;
const LookupVariant lookup_cb_resident = {
    .name = "cb_resident",
    .device = Device::cuda,
    .idea =
        "fp16 tensor-core scores (mma.sync), the codebook in shared memory, no barriers; score64 in doubt",
    .exact = true,
    .supports =
        [](int64_t, int64_t K, int64_t D) {
          return D <= kMostDims && K <= 64 * 1024 && compute_capability() >= 80 &&
                 shared_bytes(K, D) <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
        },
    .scratch_bytes = [](int64_t N, int64_t K,
                        int64_t D) { return lookup_work_bytes(N, K, D, half_codes_bytes(K, D)); },
    .run = run_cb_resident,
};

}  // namespace vqlab
