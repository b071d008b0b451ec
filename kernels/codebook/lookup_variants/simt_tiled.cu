// Scores s_k = x.c_k - |c_k|^2 / 2 as a register-tiled fp32 product with the argmax in its epilogue; no N x K
// buffer. Rows whose best two scores are too close are decided by score64 (lookup_recheck.cu). Ties: the
// lowest code.
// Mapping: a block owns kBlockN rows and passes over the codes, kBlockK at a time, in slabs of 8 dimensions;
// a warp of 4 x 8 lanes owns a part of that tile, a thread kThreadN x kThreadK scores in quads of rows and
// codes. Traffic: K * D floats of codebook and ceil(K / 128) * kBlockN * D of latents per block, from L2.
// Shared memory: 42 KB at 128 x 128, 23 KB at 32 x 128. Needs: K * D < 2^34; loads of 16 bytes where D % 8 is
// 0 and the latents are aligned to them. Measured on an H200: 0.48 ms at (262144, 512, 64), 35.6 TFLOP/s; 8
// us at (6272, 256, 16).
#include "../../core/grid.hpp"
#include "../lookup_recheck.cuh"

namespace vqlab {
namespace {

constexpr int kBlock = 256;
constexpr int kSlab = int(kPackDims);     // dimensions in shared memory at a time
constexpr int64_t kManyRows = 128 * 128;  // from here on, tiles of 128 rows occupy an H100

// The geometry of a tile, in each thread's eyes.
template <int kBlockN, int kBlockK, int kThreadN, int kThreadK>
struct Tile {
  static constexpr int kWarpN = 4 * kThreadN, kWarpK = 8 * kThreadK, kWarpsK = kBlockK / kWarpK;
  static constexpr int kRowQuads = kBlockN / 4 + 1;  // padded: the transposing stores of a warp hit 32 banks
  static constexpr int kLoaders = kBlockN * kSlab / 4;  // threads that load 4 elements of a latent
  static_assert(kSlab == 8 && kBlockN % 32 == 0 && kThreadN % 4 == 0 && kThreadK % 4 == 0);
  static_assert(kBlockN / kWarpN * kWarpsK * 32 == kBlock && kBlockK * kSlab / 4 == kBlock);
  static_assert(kLoaders <= kBlock && kPackCodes % kBlockK == 0);

  // Row i and code j of this thread: the quads of neighbouring lanes lie side by side.
  static __device__ int row(int i) {
    const unsigned warp = threadIdx.x / 32 / kWarpsK, lane = threadIdx.x % 32 / 8;
    return int(warp * kWarpN + lane * 4) + i / 4 * 16 + i % 4;
  }
  static __device__ int code(int j) {
    const unsigned warp = threadIdx.x / 32 % kWarpsK, lane = threadIdx.x % 8;
    return int(warp * kWarpK + lane * 4) + j / 4 * 32 + j % 4;
  }
  // The inverse: a row of the tile is row(index(row)) of the threads thread(row, 0), thread(row, 1), ...
  static __device__ int index(int row) { return row % kWarpN / 16 * 4 + row % 4; }
  static __device__ int thread(int row, int column) {
    return (row / kWarpN * kWarpsK + column / 8) * 32 + row % 16 / 4 * 8 + column % 8;
  }
};

// Elements [d, d + 4) of a latent (D), 0 behind its end. kVector: D % kSlab is 0.
template <bool kVector>
__device__ inline float4 load_quad(const float* latent, int d, int D) {
  if (kVector) return *reinterpret_cast<const float4*>(latent + d);
  float4 quad = {0.0f, 0.0f, 0.0f, 0.0f};
  if (d < D) quad.x = latent[d];
  if (d + 1 < D) quad.y = latent[d + 1];
  if (d + 2 < D) quad.z = latent[d + 2];
  if (d + 3 < D) quad.w = latent[d + 3];
  return quad;
}

__device__ inline void unpack(float* to, const float4& quad) {
  to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
}

// scores = start + rows x codes over the first slab, scores += rows x codes over others.
template <class T, bool kFirst, int kThreadN, int kThreadK, int kCodeQuads>
__device__ inline void multiply_slab(float (&scores)[kThreadN][kThreadK], const float (&start)[kThreadK],
                                     const float4 (&rows)[kSlab][T::kRowQuads],
                                     const float4 (&codes)[kSlab][kCodeQuads]) {
#pragma unroll
  for (int d = 0; d < kSlab; ++d) {
    float x[kThreadN], c[kThreadK];
#pragma unroll
    for (int i = 0; i < kThreadN; i += 4) unpack(x + i, rows[d][T::row(i) / 4]);
#pragma unroll
    for (int j = 0; j < kThreadK; j += 4) unpack(c + j, codes[d][T::code(j) / 4]);
#pragma unroll
    for (int i = 0; i < kThreadN; ++i)
#pragma unroll
      for (int j = 0; j < kThreadK; ++j)
        scores[i][j] = fmaf(x[i], c[j], kFirst && d == 0 ? start[j] : scores[i][j]);
  }
}

template <int kBlockN, int kBlockK, int kThreadN, int kThreadK, bool kVector>
__global__ void __launch_bounds__(kBlock, 2)
    lookup_simt_tiled_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                             unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                             const float* latents /*(N, D)*/, const float* codes_t /*(packed_D, packed_K)*/,
                             const float* half_norms /*(packed_K)*/,
                             const float* pack_norms /*(norm_blocks)*/, int64_t N, int K, int D, int packed_K,
                             int64_t norm_blocks) {
  using T = Tile<kBlockN, kBlockK, kThreadN, kThreadK>;
  VQ_SHARED(float4, slab_rows, [2][kSlab][T::kRowQuads]);
  VQ_SHARED(float4, slab_codes, [2][kSlab][kBlockK / 4]);
  VQ_SHARED(TopTwo, tops, [kThreadN][kBlock]);  // of each thread's rows: registers are for the scores
  VQ_SHARED(float, squares, [kBlockN]);
  const unsigned thread = threadIdx.x;
  const int64_t first_row = int64_t(blockIdx.x) * kBlockN;

  // What this thread carries from global to shared memory: a quad of a latent, which is row N - 1 behind the
  // end, and a quad of codes.
  const int load_row = int(thread / 2 % kBlockN), load_dim = int(thread % 2 * 4);
  const unsigned code_dim = thread / (kBlockK / 4), code_quad = thread % (kBlockK / 4);
  const float* block_latents = latents + first_row * D;
  const unsigned latent = unsigned(min(int64_t(load_row), N - 1 - first_row)) * unsigned(D);
  const float4* code_quads = reinterpret_cast<const float4*>(codes_t);
  const unsigned code_stride = unsigned(packed_K) * (kSlab / 4);  // in quads; below 2^32, as all of codes_t
  unsigned tile_codes = code_dim * unsigned(packed_K / 4) + code_quad;
  float square = 0.0f;
#pragma unroll 4
  for (int d = load_dim; d < D; d += kSlab) {
    const float4 x = load_quad<kVector>(block_latents + latent, d, D);
    square = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, square))));
  }
  square += __shfl_xor_sync(0xffffffffu, square, 1);
  if (thread < T::kLoaders && load_dim == 0) squares[load_row] = square;

  float4 next_row = load_quad<kVector>(block_latents + latent, load_dim, D),
         next_codes = code_quads[tile_codes];
  const auto store_next = [&](int buffer) {
    slab_codes[buffer][code_dim][code_quad] = next_codes;
    if (T::kLoaders < kBlock && thread >= T::kLoaders) return;
    float x[4];
    unpack(x, next_row);
    for (int i = 0; i < 4; ++i) reinterpret_cast<float*>(slab_rows[buffer][load_dim + i])[load_row] = x[i];
  };
  store_next(0);
  for (int i = 0; i < kThreadN; ++i) tops[i][thread] = TopTwo::none();
  __syncthreads();  // the first slab is stored before it is multiplied

  int buffer = 0;
  for (int first_code = 0; first_code < K; first_code += kBlockK) {
    float scores[kThreadN][kThreadK], start[kThreadK];
#pragma unroll
    for (int j = 0; j < kThreadK; j += 4)
      unpack(start + j, *reinterpret_cast<const float4*>(half_norms + first_code + T::code(j)));
    unsigned slab_ahead = tile_codes;
    if (first_code + kBlockK < K)
      tile_codes += kBlockK / 4;  // else the last slab loads one that nobody reads
    const auto pass_slab = [&](int d, auto first) {
      const bool last = d + kSlab >= D;
      slab_ahead = last ? tile_codes : slab_ahead + code_stride;
      next_codes = code_quads[slab_ahead];
      next_row = load_quad<kVector>(block_latents + latent, (last ? 0 : d + kSlab) + load_dim, D);
      multiply_slab<T, decltype(first)::value>(scores, start, slab_rows[buffer], slab_codes[buffer]);
      buffer ^= 1;
      store_next(buffer);
      __syncthreads();  // a slab has been read before it is overwritten, the next is stored before it is read
    };
    pass_slab(0, std::true_type{});
    for (int d = kSlab; d < D; d += kSlab) pass_slab(d, std::false_type{});
#pragma unroll
    for (int i = 0; i < kThreadN; ++i) {
      TopTwo top = tops[i][thread];
#pragma unroll
      for (int j = 0; j < kThreadK; ++j) top.add(scores[i][j], first_code + T::code(j));
      tops[i][thread] = top;
    }
  }

  const ErrorBound bound = block_error_bound(pack_norms, norm_blocks, D);
  __syncthreads();  // every thread's best scores and all squares are stored before a thread settles its row
  if (thread >= kBlockN) return;
  TopTwo best = TopTwo::none();
  for (int column = 0; column < kBlockK / kThreadK; ++column)
    best.merge(tops[T::index(int(thread))][T::thread(int(thread), column)]);
  const int64_t row = first_row + thread;
  settle_row({codes, first_bad_row, doubtful_count, doubtful}, row < N, int32_t(row), best, squares[thread],
             latents + row * D, D, bound);
}

template <int kBlockN, int kThreadN, int kThreadK, bool kVector>
void filter(const LookupOp& op, const LookupWork& work, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  launch("lookup_simt_tiled", lookup_simt_tiled_kernel<kBlockN, 128, kThreadN, kThreadK, kVector>,
         {unsigned((N + kBlockN - 1) / kBlockN), unsigned(kBlock)}, stream, op.codes.data,
         reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count, work.doubtful,
         op.latents.data, work.codes_t, work.half_norms, work.pack_norms, N, int(K), int(D),
         int(work.packed_K), work.norm_blocks());
}

void run_simt_tiled(const LookupOp& op, Stream stream) {
  const LookupWork work = prepare_lookup(op, stream);
  const bool many = op.latents[0] >= kManyRows;
  if (op.latents[1] % kSlab == 0 && aligned_to_16_bytes(op.latents.data))
    many ? filter<128, 8, 8, true>(op, work, stream) : filter<32, 4, 4, true>(op, work, stream);
  else
    many ? filter<128, 8, 8, false>(op, work, stream) : filter<32, 4, 4, false>(op, work, stream);
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_simt_tiled;
const LookupVariant lookup_simt_tiled = {
    .name = "simt_tiled",
    .device = Device::cuda,
    .idea = "register-tiled fp32 scores with the argmax in the epilogue; score64 where two are too close",
    .exact = true,
    .supports =
        [](int64_t, int64_t K, int64_t D) {  // so that the kernel can count in 32 bits
          return K <= int64_t(1) << 30 && D <= int64_t(1) << 24 &&
                 (K + kPackCodes) * (D + kPackDims) < int64_t(1) << 34;
        },
    .scratch_bytes = [](int64_t N, int64_t K, int64_t D) { return lookup_work_bytes(N, K, D); },
    .run = run_simt_tiled,
};

}  // namespace vqlab
