// For D <= 16: scores s_k = x.c_k - |c_k|^2 / 2 from one step of fp16 products on the tensor cores, less
// work than comparing them: so only the maximum of each cell of 32 codes is taken. At the end the scores of
// a row's best cell are computed in fp32; rows whose runner-up there or in another cell is too close are
// decided by score64 (lookup_recheck.cu). Ties: the lowest code.
//
// Mapping: a warp owns 64 rows (16 if there are few), in registers; its block brings the codes by cp.async,
// 128 at a time, three tiles ahead. A cell is what a lane sees of a tile: codes 2 t, 2 t + 1 of each 8. The
// rows of a warp share a scale, and products start at U (S - |c|^2 / 2), S so large that all scores are
// positive: floats compare as integers, of which sm_90 takes the largest of three at once, 0.7 operations a
// score. Traffic: N * D floats; 32 bytes a code per 512 rows and 32 codes a row, from L2. Shared memory: 27
// KB. Wins: K large beside D. Loses: rows of a warp that differ by more than 2^8 in size; the small go to
// score64. Needs: sm_80. Predicted, H200: 0.25 to 0.35 ms at (262144, 16384, 8). Compiled, not yet run on a
// GPU.
#include "../../core/ptx.cuh"
#include "../lookup_halves.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32, kBlockK = 128, kStages = 4;
constexpr int kMmaN = 16, kMmaK = 8, kDims = int(kHalfDims);
constexpr int kStageRow = kDims + 8;  // halves; padded: eight rows of a matrix hit 32 banks
constexpr int kCell = kBlockK / 4;    // codes
constexpr int64_t kManyRows = 64 * 1024;
static_assert(kPackCodes % kBlockK == 0 && kBlockK * kDims / 8 == kBlock);

struct alignas(16) Stage {
  __half codes[kBlockK][kStageRow];
  float norms[kBlockK];
};

// The best and the second best cell of a row so far, as bits of positive floats; 0 is below all.
struct TopCells {
  int best, second;
  int32_t cell;

  __device__ void add(int score, int32_t number) {
    second = max(second, min(best, score));
    cell = score > best ? number : cell;
    best = max(best, score);
  }
  // With the lane whose number differs in the bits of `lanes`; both then hold the same. By whole warps.
  __device__ void merge_lanes(int lanes) {
    const int other = __shfl_xor_sync(0xffffffffu, best, lanes);
    const int other_second = __shfl_xor_sync(0xffffffffu, second, lanes);
    const int32_t other_cell = __shfl_xor_sync(0xffffffffu, cell, lanes);
    second = max(max(second, other_second), min(best, other));
    cell = other > best || (other == best && other_cell < cell) ? other_cell : cell;
    best = max(best, other);
  }
};

// The rows of a warp, 16 kTiles of them, as operands of products: a lane has row(i, h) of them in part.
template <int kTiles>
struct Rows {
  uint32_t halves[kTiles][4];
  float square[kTiles][2], loss_square[kTiles][2];
  float scale, largest;  // power of two; the largest norm of a finite row

  static __device__ int row(int i, int h) { return i * kMmaN + h * 8 + int(threadIdx.x % 32 / 4); }
};

// Rows [first, first + 16 kTiles) of the latents (N, D), row N - 1 behind the end.
template <int kTiles>
__device__ inline void load_rows(Rows<kTiles>& rows, const float* latents, int64_t first, int64_t N, int D) {
  const int t = int(threadIdx.x % 4);
  float x[kTiles][2][4];
  rows.largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* latent = latents + min(first + rows.row(i, h), N - 1) * D;
      float square = 0.0f;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int d = e / 2 * 8 + t * 2 + e % 2;
        x[i][h][e] = d < D ? latent[d] : 0.0f;
        square = fmaf(x[i][h][e], x[i][h][e], square);
      }
      rows.square[i][h] = square = add_neighbours<4>(square);
      if (square < kInfinity) rows.largest = fmaxf(rows.largest, sqrtf(square));
    }
  for (int lanes = 16; lanes >= 4; lanes /= 2)
    rows.largest = fmaxf(rows.largest, __shfl_xor_sync(0xffffffffu, rows.largest, lanes));
  rows.scale = half_scale(rows.largest);
  const float back = 1.0f / rows.scale;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float loss_square = 0.0f;
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const __half2 pair = __floats2half2_rn(x[i][h][e] * rows.scale, x[i][h][e + 1] * rows.scale);
        const float low = x[i][h][e] - __low2float(pair) * back,
                    high = x[i][h][e + 1] - __high2float(pair) * back;
        loss_square = fmaf(low, low, fmaf(high, high, loss_square));
        rows.halves[i][e + h] = half_word(pair);
      }
      rows.loss_square[i][h] = add_neighbours<4>(loss_square);
    }
}

// Where the scores of products begin: U (shift - |c|^2 / 2), positive whatever row of the warp is added.
struct Start {
  float scale, shift, scaled_shift;  // U, S, U S

  __device__ float operator()(float half_norm) const { return fmaf(half_norm, scale, scaled_shift); }
  __device__ float undo(int bits) const { return fmaf(__int_as_float(bits), 1.0f / scale, -shift); }
};

// The maxima of a tile's cells, entered into `top`.
template <int kTiles>
__device__ inline void pass_tile(TopCells (&top)[kTiles][2], const Rows<kTiles>& rows, const Stage& stage,
                                 const Start& start, int32_t cell) {
  const int matrix = int(threadIdx.x % 32 / 8), row = int(threadIdx.x % 8);
  int most[kTiles][2] = {};
#pragma unroll 4
  for (int j = 0; j < kBlockK; j += 2 * kMmaK) {
    uint32_t b[4];
    ptx::load_matrices(b, &stage.codes[j + matrix / 2 * 8 + row][matrix % 2 * 8]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 norm =
          *reinterpret_cast<const float2*>(stage.norms + j + half * kMmaK + threadIdx.x % 4 * 2);
      const float low = start(norm.x), high = start(norm.y);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float scores[4] = {low, high, low, high};
        ptx::mma_f16(scores, rows.halves[i], {b[2 * half], b[2 * half + 1]});
#pragma unroll
        for (int h = 0; h < 2; ++h)
          most[i][h] = max(max(most[i][h], __float_as_int(scores[2 * h])), __float_as_int(scores[2 * h + 1]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) top[i][h].add(most[i][h], cell);
}

// The best two fp32 scores of a cell for one row, by the four lanes of a row.
__device__ inline TopTwo search_cell(int32_t cell, const float* latent, const float* codebook,
                                     const float* half_norms, int K, int D) {
  float x[kDims];
#pragma unroll
  for (int d = 0; d < kDims; ++d) x[d] = d < D ? latent[d] : 0.0f;
  TopTwo top = TopTwo::none();
  for (int i = 0; i < kCell / 4; ++i) {
    const int in_cell = int(threadIdx.x % 4) * (kCell / 4) + i;
    const int code = cell / 4 * kBlockK + in_cell / 2 * kMmaK + cell % 4 * 2 + in_cell % 2;
    if (code >= K) continue;
    float score = half_norms[code];
#pragma unroll
    for (int d = 0; d < kDims; ++d)
      if (d < D) score = fmaf(x[d], codebook[int64_t(code) * D + d], score);
    top.add(score, code);
  }
  top.merge_lanes(1);
  top.merge_lanes(2);
  return top;
}

// How far a cell's maximum may be from the largest exact score in it. Beside what half_error has, the one
// step of the tensor core adds up numbers of at most 2 S + X C <= 3 S, and the start and undo() are rounded
// by 2^-24 of 2 S each: with twice 19 * 2^-24 * 3 S that stays below 2^-17 S.
__device__ inline float cell_error(float square, float loss_square, float loss_norm, const ErrorBound& bound,
                                   float shift) {
  constexpr float up = 1.0f + 0x1p-16f;
  const float X = bound.norm(square), dX = bound.norm(loss_square);
  return fmaf(dX, bound.C, fmaf(X + dX, loss_norm, 0x1p-17f * shift)) * up + kTiny;
}

template <int kTiles>
__global__ void __launch_bounds__(kBlock, 2)
    lookup_tiny_d_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                         unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                         const float* latents /*(N, D)*/, const float* codebook /*(K, D)*/,
                         const __half* half_codes /*(K, kDims)*/, const float* half_norms /*(packed_K)*/,
                         const float* pack_norms /*(norm_blocks)*/, const float* loss_norms /*(norm_blocks)*/,
                         int64_t N, int K, int D, int64_t norm_blocks) {
  VQ_SHARED(Stage, stages, [kStages]);
  int next_code = 0, next_stage = 0;
  const auto load_ahead = [&] {
    const int thread = int(threadIdx.x), row = thread / 2, column = thread % 2 * 8;
    if (next_code < K) {
      ptx::copy_16_async(&stages[next_stage].codes[row][column],
                         half_codes + int64_t(next_code + row) * kDims + column, next_code + row < K);
      if (thread < kBlockK / 4)
        ptx::copy_16_async(stages[next_stage].norms + thread * 4, half_norms + next_code + thread * 4, true);
      next_code += kBlockK;
      next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
    }
    ptx::copies_commit();  // an empty group behind the end: the waits count groups
  };
  for (int i = 0; i < kStages - 1; ++i) load_ahead();

  const int64_t first_row = (int64_t(blockIdx.x) * kWarps + threadIdx.x / 32) * kTiles * kMmaN;
  Rows<kTiles> rows;
  load_rows(rows, latents, first_row, N, D);
  const ErrorBound bound = error_bound(warp_largest(pack_norms, norm_blocks), D);
  // A sixteenth more than any score is below 0: more than the roundings take.
  Start start;
  start.scale = rows.scale * half_scale(bound.largest);
  start.shift = 1.0625f * fmaf(rows.largest, bound.C, bound.half_square);
  start.scaled_shift = start.scale * start.shift;

  TopCells top[kTiles][2] = {};
  int stage = 0;
  for (int tile = 0; tile * kBlockK < K; ++tile) {
    ptx::copies_wait<kStages - 2>();
    __syncthreads();  // the tile is there for all, and all have read the one before
    load_ahead();
    pass_tile(top, rows, stages[stage], start, int32_t(tile * 4 + threadIdx.x % 4));
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  const float loss_norm = warp_largest(loss_norms, norm_blocks);
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first_row + rows.row(i, h);
      const float* latent = latents + min(row, N - 1) * D;
      top[i][h].merge_lanes(1);
      top[i][h].merge_lanes(2);
      TopTwo best = search_cell(top[i][h].cell, latent, codebook, half_norms, K, D);
      const float other = start.undo(top[i][h].second) + cell_error(rows.square[i][h], rows.loss_square[i][h],
                                                                    loss_norm, bound, start.shift);
      if (!(other <= best.second)) best.second = other;  // NaN is doubtful
      settle_row({codes, first_bad_row, doubtful_count, doubtful}, threadIdx.x % 4 == 0 && row < N,
                 int32_t(row), best, rows.square[i][h], latent, D, bound);
    }
}

template <int kTiles>
void filter(const LookupOp& op, const LookupWork& work, const HalfCodes& halves, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  constexpr int64_t kBlockN = kWarps * kTiles * kMmaN;
  launch("lookup_tiny_d", lookup_tiny_d_kernel<kTiles>,
         {unsigned((N + kBlockN - 1) / kBlockN), unsigned(kBlock)}, stream, op.codes.data,
         reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count, work.doubtful,
         op.latents.data, op.codebook.data, halves.codes, work.half_norms, work.pack_norms, halves.loss_norms,
         N, int(K), int(D), work.norm_blocks());
}

void run_tiny_d(const LookupOp& op, Stream stream) {
  const LookupWork work = prepare_lookup(op, stream);
  const HalfCodes halves = half_codes(work.rest.data, op.codebook[0], op.codebook[1]);
  pack_half_codes(op, work, halves, stream);
  op.latents[0] >= kManyRows ? filter<4>(op, work, halves, stream) : filter<1>(op, work, halves, stream);
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_tiny_d;
const LookupVariant lookup_tiny_d = {
    .name = "tiny_d",
    .device = Device::cuda,
    .idea =
        "D <= 16: maxima of 32 fp16 tensor-core scores at a time, then fp32 in the best; score64 in doubt",
    .exact = true,
    .supports =
        [](int64_t, int64_t K, int64_t D) {
          return K <= int64_t(1) << 30 && D <= kHalfDims && compute_capability() >= 80;
        },
    .scratch_bytes = [](int64_t N, int64_t K,
                        int64_t D) { return lookup_work_bytes(N, K, D, half_codes_bytes(K, D)); },
    .run = run_tiny_d,
};

}  // namespace vqlab
