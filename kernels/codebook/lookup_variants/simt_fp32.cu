// Scores s_k = x.c_k - |c_k|^2 / 2 as a register-tiled fp32 product with the argmax in its epilogue; no N x
// K buffer. Rows whose best two scores are too close are decided by score64 (lookup_recheck.cu). Ties: the
// lowest code.
//
// Mapping: as simt_tiled: a block owns kBlockN rows and passes over the codes, 128 at a time, in slabs of 8
// dimensions; a warp of 4 x 8 lanes owns a part of that tile, a thread kThread x kThread scores. Traffic: K
// * D floats of codebook and ceil(K / 128) * kBlockN * D of latents per block, from L2. Shared memory: 46 KB
// at 128 x 128, in 2 stages, 37 KB at 32 x 128, in 4. Wins: without tensor cores, and as the fp32 baseline.
// Needs: sm_80. Against simt_tiled: cp.async instead of registers and stores; rows as they are, so that a
// thread reads 4 dimensions of a row, not 4 rows of a dimension; norms with the codes. Compiled, not yet run
// on a GPU.
#include "../../core/grid.hpp"
#include "../../core/ptx.cuh"
#include "../lookup_recheck.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256, kBlockK = 128;
constexpr int kSlab = int(kPackDims);     // dimensions in a stage
constexpr int kStageRow = kSlab + 4;      // floats of a row; padded: what a warp reads at once hits 32 banks
constexpr int64_t kManyRows = 128 * 128;  // from here on, tiles of 128 rows occupy an H100
static_assert(kPackCodes % kBlockK == 0 && kSlab * kBlockK / 4 == kBlock);

template <int kBlockN>
struct alignas(16) Stage {
  float rows[kBlockN][kStageRow];
  float codes[kSlab][kBlockK];
  float norms[kBlockK];  // half norms of the codes, with their first slab
};

// The geometry of a tile, in each thread's eyes: kThread rows and kThread codes, the codes in quads.
template <int kBlockN, int kThread>
struct Tile {
  static constexpr int kWarpN = 4 * kThread, kWarpK = 8 * kThread, kWarpsK = kBlockK / kWarpK;
  static constexpr int kRowParts = kBlockN * kSlab / 4;  // copies of 16 bytes
  static_assert(kThread % 4 == 0 && kBlockN / kWarpN * kWarpsK * 32 == kBlock && kRowParts <= kBlock);

  // Row i and code j of this thread: neighbouring lanes have neighbouring rows, and quads side by side.
  static __device__ int row(int i) {
    return int(threadIdx.x / 32 / kWarpsK * kWarpN + threadIdx.x % 32 / 8) + 4 * i;
  }
  static __device__ int code(int j) {
    return int(threadIdx.x / 32 % kWarpsK * kWarpK + threadIdx.x % 8 * 4) + j / 4 * 32 + j % 4;
  }
  // The inverse: a row of the tile is row(index(row)) of the threads thread(row, 0), thread(row, 1), ...
  static __device__ int index(int row) { return row % kWarpN / 4; }
  static __device__ int thread(int row, int column) {
    return (row / kWarpN * kWarpsK + column / 8) * 32 + row % 4 * 8 + column % 8;
  }
};

// scores = start + rows x codes over the first slab of a tile, scores += rows x codes over others.
template <class T, bool kFirst, int kBlockN, int kThread>
__device__ inline void multiply_slab(float (&scores)[kThread][kThread], const Stage<kBlockN>& stage) {
#pragma unroll
  for (int d0 = 0; d0 < kSlab; d0 += 4) {
    float x[kThread][4];
#pragma unroll
    for (int i = 0; i < kThread; ++i) {
      const float4 quad = *reinterpret_cast<const float4*>(&stage.rows[T::row(i)][d0]);
      x[i][0] = quad.x, x[i][1] = quad.y, x[i][2] = quad.z, x[i][3] = quad.w;
    }
#pragma unroll
    for (int d = 0; d < 4; ++d)
#pragma unroll
      for (int j = 0; j < kThread; j += 4) {
        const float4 quad = *reinterpret_cast<const float4*>(&stage.codes[d0 + d][T::code(j)]);
        const float c[4] = {quad.x, quad.y, quad.z, quad.w};
        float start[4];
        if (kFirst && d0 + d == 0) {
          const float4 norms = *reinterpret_cast<const float4*>(&stage.norms[T::code(j)]);
          start[0] = norms.x, start[1] = norms.y, start[2] = norms.z, start[3] = norms.w;
        }
#pragma unroll
        for (int i = 0; i < kThread; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            scores[i][j + e] = fmaf(x[i][d], c[e], kFirst && d0 + d == 0 ? start[e] : scores[i][j + e]);
      }
  }
}

template <int kBlockN, int kThread, int kStages, bool kVector>
__global__ void __launch_bounds__(kBlock, 2)
    lookup_simt_fp32_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                            unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                            const float* latents /*(N, D)*/, const float* codes_t /*(packed_D, packed_K)*/,
                            const float* half_norms /*(packed_K)*/, const float* pack_norms /*(norm_blocks)*/,
                            int64_t N, int K, int D, int packed_K, int64_t norm_blocks) {
  using T = Tile<kBlockN, kThread>;
  VQ_SHARED(Stage<kBlockN>, stages, [kStages]);
  VQ_SHARED(TopTwo, tops, [kThread][kBlock]);  // of each thread's rows: registers are for the scores
  VQ_SHARED(float, squares, [kBlockN]);
  const int thread = int(threadIdx.x);
  const int64_t first_row = int64_t(blockIdx.x) * kBlockN;

  // What this thread brings of a slab: 4 elements of a row, which is row N - 1 behind the end, 4 codes of a
  // dimension, and some threads 4 norms.
  const int load_row = thread / (kSlab / 4), load_dim = thread % (kSlab / 4) * 4;
  const float* latent = latents + min(first_row + load_row, N - 1) * D;
  const int code_dim = thread / (kBlockK / 4), code_quad = thread % (kBlockK / 4) * 4;
  const float* next_codes = codes_t + int64_t(code_dim) * packed_K + code_quad;
  int next_code = 0, next_dim = 0, next_stage = 0;
  const auto load_ahead = [&] {
    if (next_code < K) {
      Stage<kBlockN>& stage = stages[next_stage];
      ptx::copy_16_async(&stage.codes[code_dim][code_quad], next_codes + int64_t(next_dim) * packed_K, true);
      if (next_dim == 0 && thread < kBlockK / 4)
        ptx::copy_16_async(&stage.norms[thread * 4], half_norms + next_code + thread * 4, true);
      if (T::kRowParts == kBlock || thread < T::kRowParts) {
        const int d = next_dim + load_dim;
        float* to = &stage.rows[load_row][load_dim];
        if constexpr (kVector) {
          ptx::copy_16_async(to, latent + d, d < D);
        } else {
#pragma unroll 1  // one at a time takes fewer registers
          for (int e = 0; e < 4; ++e) to[e] = d + e < D ? latent[d + e] : 0.0f;
        }
      }
      next_dim += kSlab;
      if (next_dim >= D) next_dim = 0, next_code += kBlockK, next_codes += kBlockK;
      next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
    }
    ptx::copies_commit();  // an empty group behind the end: the waits count groups
  };
  for (int i = 0; i < kStages - 1; ++i) load_ahead();
  for (int i = 0; i < kThread; ++i) tops[i][thread] = TopTwo::none();

  int stage = 0;
  float square = 0.0f;  // of what this thread brings of its row
  for (int first_code = 0; first_code < K; first_code += kBlockK) {
    float scores[kThread][kThread];
    const auto pass_slab = [&](auto first) {
      ptx::copies_wait<kStages - 2>();
      __syncthreads();  // the slab is there for all, and all have read the one before
      load_ahead();
      if (first_code == 0 && thread < T::kRowParts)
        for (int e = 0; e < 4; ++e) {
          const float x = stages[stage].rows[load_row][load_dim + e];
          square = fmaf(x, x, square);
        }
      multiply_slab<T, decltype(first)::value>(scores, stages[stage]);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    };
    pass_slab(std::true_type{});
    for (int d = kSlab; d < D; d += kSlab) pass_slab(std::false_type{});
#pragma unroll
    for (int i = 0; i < kThread; ++i) {
      TopTwo top = tops[i][thread];
#pragma unroll
      for (int j = 0; j < kThread; ++j) top.add(scores[i][j], first_code + T::code(j));
      tops[i][thread] = top;
    }
  }

  const ErrorBound bound = error_bound(warp_largest(pack_norms, norm_blocks), D);
  square = add_neighbours<kSlab / 4>(square);
  if (thread < T::kRowParts && load_dim == 0) squares[load_row] = square;
  __syncthreads();  // every thread's best scores and all squares are stored before a thread settles its row
  if (thread >= kBlockN) return;
  TopTwo best = TopTwo::none();
  for (int column = 0; column < kBlockK / kThread; ++column)
    best.merge(tops[T::index(thread)][T::thread(thread, column)]);
  const int64_t row = first_row + thread;
  settle_row({codes, first_bad_row, doubtful_count, doubtful}, row < N, int32_t(row), best, squares[thread],
             latents + row * D, D, bound);
}

template <int kBlockN, int kThread, int kStages>
void filter(const LookupOp& op, const LookupWork& work, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const bool vector = D % 4 == 0 && aligned_to_16_bytes(op.latents.data);
  launch("lookup_simt_fp32",
         vector ? lookup_simt_fp32_kernel<kBlockN, kThread, kStages, true>
                : lookup_simt_fp32_kernel<kBlockN, kThread, kStages, false>,
         {unsigned((N + kBlockN - 1) / kBlockN), unsigned(kBlock)}, stream, op.codes.data,
         reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count, work.doubtful,
         op.latents.data, work.codes_t, work.half_norms, work.pack_norms, N, int(K), int(D),
         int(work.packed_K), work.norm_blocks());
}

void run_simt_fp32(const LookupOp& op, Stream stream) {
  const LookupWork work = prepare_lookup(op, stream);
  op.latents[0] >= kManyRows ? filter<128, 8, 2>(op, work, stream) : filter<32, 4, 4>(op, work, stream);
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_simt_fp32;
const LookupVariant lookup_simt_fp32 = {
    .name = "simt_fp32",
    .device = Device::cuda,
    .idea = "register-tiled fp32 scores, operands by cp.async in stages; score64 where two are too close",
    .exact = true,
    .supports =
        [](int64_t, int64_t K, int64_t D) {
          return K <= int64_t(1) << 30 && D <= int64_t(1) << 24 && compute_capability() >= 80;
        },
    .scratch_bytes = [](int64_t N, int64_t K, int64_t D) { return lookup_work_bytes(N, K, D); },
    .run = run_simt_fp32,
};

}  // namespace vqlab
