// What comes before and after the filter of a CUDA lookup: packing the codebook, and score64 for the
// rows that the filter left open. Ties: the lowest code.
// Mapping: packing, a block transposes 32 codes. Recheck, a block takes 8 rows of the list at a time, a
// thread every 256th group of 4 codes; a code competes by score64 only if its fp32 score reaches the floor.
// Traffic: packing K * D floats in and out; recheck K * D + 8 * D floats per 8 listed rows, from L2.
// Shared memory: packing 6.5 KB; recheck 28 KB.
// Needs: nothing; any size and alignment to 4 bytes. Measured on an H200, fmnist-s (N = 6272, K = 256, D =
// 16): 3.4 us packing, 16 us recheck early in a run.
#include <algorithm>

#include "lookup_recheck.cuh"

namespace vqlab {
namespace {

constexpr int kPackThreads = 8;  // of each code
constexpr int kRows = 8;         // of the list, in a block of the recheck: one for each warp at the end
constexpr int kThreads = 256;
constexpr int kThreadCodes = 4;
constexpr int kDims = 128;           // of the rows, in shared memory at a time
constexpr int64_t kMaxBlocks = 528;  // 4 for each multiprocessor of an H100; a longer list loops
constexpr double kFar = std::numeric_limits<double>::infinity();

// Also sets what the filter counts up: doubtful_count (1) and first_bad_row (1).
__global__ void __launch_bounds__(kPackBlockCodes* kPackThreads)
    lookup_pack_kernel(float* codes_t /*(packed_D, packed_K)*/, float* half_norms /*(packed_K)*/,
                       float* pack_norms /*(gridDim)*/, unsigned* doubtful_count, unsigned* first_bad_row,
                       const float* codebook /*(K, D)*/, int64_t K, int64_t D, int64_t packed_K,
                       int64_t packed_D) {
  constexpr int kSide = int(kPackBlockCodes);
  VQ_SHARED(float, tile, [kSide][kSide + 1]);  // the pad keeps columns off one bank
  VQ_SHARED(double, squares, [kPackThreads][kSide]);
  const int x = int(threadIdx.x) % kSide, y = int(threadIdx.x) / kSide;
  const int64_t first = int64_t(blockIdx.x) * kSide;
  if (blockIdx.x == 0 && threadIdx.x == 0) *doubtful_count = 0, *first_bad_row = ~0u;

  double square = 0.0;
  for (int64_t d0 = 0; d0 < packed_D; d0 += kSide) {
    for (int i = y; i < kSide; i += kPackThreads)
      tile[i][x] = first + i < K && d0 + x < D ? codebook[(first + i) * D + d0 + x] : 0.0f;
    __syncthreads();  // the tile is stored before its columns are read
    for (int i = y; i < kSide && d0 + i < packed_D; i += kPackThreads) {
      const float element = tile[x][i];
      codes_t[(d0 + i) * packed_K + first + x] = element;
      square += double(element) * double(element);
    }
    __syncthreads();  // the tile has been read before the next one overwrites it
  }
  squares[y][x] = square;
  __syncthreads();  // all parts of the norms are stored before the first warp adds them
  if (y != 0) return;
  for (int i = 1; i < kPackThreads; ++i) square += squares[i][x];
  half_norms[first + x] = first + x < K ? float(-0.5 * square) : kMinusInfinity;
  float largest = float(sqrt(square));
  for (int lanes = kSide / 2; lanes > 0; lanes /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
  if (x == 0) pack_norms[blockIdx.x] = largest;
}

// scores[r][c] += rows[r] . codes c, over `dims` dimensions, a multiple of 4. codes_t points to the first
// dimension of the thread's first code.
__device__ inline void add_products(float (&scores)[kRows][kThreadCodes], const float4 (*rows)[kDims / 4],
                                    const float* codes_t, int64_t packed_K, int dims) {
  for (int d = 0; d < dims; d += 4) {
    float4 code[4];
    for (int i = 0; i < 4; ++i) code[i] = *reinterpret_cast<const float4*>(codes_t + (d + i) * packed_K);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 x = rows[r][d / 4];
      const float element[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[r][0] = fmaf(element[i], code[i].x, scores[r][0]);
        scores[r][1] = fmaf(element[i], code[i].y, scores[r][1]);
        scores[r][2] = fmaf(element[i], code[i].z, scores[r][2]);
        scores[r][3] = fmaf(element[i], code[i].w, scores[r][3]);
      }
    }
  }
}

// Bit r * kThreadCodes + c: code c may be the nearest of row r. A score that overflowed to NaN may.
__device__ inline unsigned find_candidates(const float (&scores)[kRows][kThreadCodes],
                                           const float (&floors)[kRows], int64_t filled) {
  unsigned candidates = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kThreadCodes; ++c)
      candidates |= unsigned(r < filled && !(scores[r][c] < floors[r])) << (r * kThreadCodes + c);
  return candidates;
}

__global__ void __launch_bounds__(kThreads, 2)
    lookup_recheck_kernel(int32_t* codes /*(N)*/, const Doubtful* doubtful /*(N)*/,
                          const unsigned* doubtful_count /*(1)*/, const float* latents /*(N, D)*/,
                          const float* codebook /*(K, D)*/, const float* codes_t /*(packed_D, packed_K)*/,
                          const float* half_norms /*(packed_K)*/, int64_t K, int64_t D, int64_t packed_K,
                          int64_t packed_D) {
  VQ_SHARED(float4, rows, [kRows][kDims / 4]);
  VQ_SHARED(double, distances, [kRows][kThreads]);  // of the nearest code that a thread found for each row
  VQ_SHARED(int32_t, nearest, [kRows][kThreads]);   // that code
  const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t count = int64_t(*doubtful_count);
  for (int64_t begin = int64_t(blockIdx.x) * kRows; begin < count; begin += int64_t(gridDim.x) * kRows) {
    const int64_t filled = min(int64_t(kRows), count - begin);
    float floors[kRows];
    for (int r = 0; r < kRows; ++r) {
      floors[r] = r < filled ? doubtful[begin + r].floor : 0.0f;
      distances[r][thread] = kFar;
      nearest[r][thread] = 0;
    }
    // Each warp loads one row.
    const float* latent = warp < filled ? latents + doubtful[begin + warp].row * D : nullptr;
    for (int64_t k0 = 0; k0 < K; k0 += kThreads * kThreadCodes) {
      const int64_t k = k0 + thread * kThreadCodes;
      float scores[kRows][kThreadCodes];
      for (int c = 0; c < kThreadCodes; ++c) {
        const float start = k < packed_K ? half_norms[k + c] : kMinusInfinity;
        for (int r = 0; r < kRows; ++r) scores[r][c] = start;
      }
      for (int64_t d0 = 0; d0 < packed_D; d0 += kDims) {
        for (int d = lane; d < kDims; d += 32)
          reinterpret_cast<float*>(rows[warp])[d] = latent && d0 + d < D ? latent[d0 + d] : 0.0f;
        __syncthreads();  // the part of the rows is stored before the threads multiply
        if (k < packed_K)
          add_products(scores, rows, codes_t + d0 * packed_K + k, packed_K,
                       int(min(int64_t(kDims), packed_D - d0)));
        __syncthreads();  // the part has been read before the next one overwrites it
      }
      unsigned candidates = find_candidates(scores, floors, filled);
      for (; candidates != 0; candidates &= candidates - 1) {  // lowest code first
        const int bit = __ffs(int(candidates)) - 1, r = bit / kThreadCodes;
        const int64_t code = k + bit % kThreadCodes;
        if (code >= K) continue;
        const double limit = distances[r][thread];
        const double distance =
            score64_below(latents + doubtful[begin + r].row * D, codebook + code * D, D, limit);
        if (distance < limit) distances[r][thread] = distance, nearest[r][thread] = int32_t(code);
      }
    }
    __syncthreads();  // all threads have their nearest codes before a warp compares those of one row
    double distance = kFar;
    int32_t code = 0;
    const auto compete = [&](double rival_distance, int32_t rival) {
      const bool wins = rival_distance < distance || (rival_distance == distance && rival < code);
      if (wins) distance = rival_distance, code = rival;
    };
    for (int i = lane; i < kThreads; i += 32) compete(distances[warp][i], nearest[warp][i]);
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const double rival_distance = __shfl_xor_sync(0xffffffffu, distance, lanes);
      compete(rival_distance, __shfl_xor_sync(0xffffffffu, code, lanes));
    }
    if (lane == 0 && warp < filled) codes[doubtful[begin + warp].row] = code;
    __syncthreads();  // the nearest codes have been read before the next rows reset them
  }
}

// Where each part of the scratch begins, in bytes from an address that is a multiple of 256.
struct Layout {
  int64_t packed_K, packed_D, codes_t, half_norms, pack_norms, count, doubtful, rest, bytes;
  Layout(int64_t N, int64_t K, int64_t D, int64_t rest_bytes) {
    const auto padded = [](int64_t size, int64_t to) { return (size + to - 1) / to * to; };
    int64_t end = 0;
    const auto take = [&](int64_t count_of, size_t size) {
      const int64_t begin = end;
      end = padded(begin + count_of * int64_t(size), 256);
      return begin;
    };
    packed_K = padded(K, kPackCodes);
    packed_D = padded(D, kPackDims);
    codes_t = take(packed_K * packed_D, sizeof(float));
    half_norms = take(packed_K, sizeof(float));
    pack_norms = take(packed_K / kPackBlockCodes, sizeof(float));
    count = take(1, sizeof(unsigned));
    doubtful = take(N, sizeof(Doubtful));
    rest = take(rest_bytes, 1);
    bytes = end + 256;  // the scratch may begin anywhere
  }
};

unsigned* first_bad_row(const LookupOp& op) { return reinterpret_cast<unsigned*>(op.first_bad_row.data); }

}  // namespace

int64_t lookup_work_bytes(int64_t N, int64_t K, int64_t D, int64_t rest) {
  return Layout(N, K, D, rest).bytes;
}

LookupWork prepare_lookup(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const Layout at(N, K, D, 0);
  const auto address = reinterpret_cast<uintptr_t>(op.scratch.data);
  std::byte* base = op.scratch.data + (256 - address % 256) % 256;
  const LookupWork work = {
      .packed_K = at.packed_K,
      .packed_D = at.packed_D,
      .codes_t = reinterpret_cast<float*>(base + at.codes_t),
      .half_norms = reinterpret_cast<float*>(base + at.half_norms),
      .pack_norms = reinterpret_cast<float*>(base + at.pack_norms),
      .doubtful_count = reinterpret_cast<unsigned*>(base + at.count),
      .doubtful = reinterpret_cast<Doubtful*>(base + at.doubtful),
      .rest = {base + at.rest, {op.scratch.data + op.scratch.size() - (base + at.rest)}}};
  launch("lookup_pack", lookup_pack_kernel,
         {unsigned(work.norm_blocks()), unsigned(kPackBlockCodes * kPackThreads)}, stream, work.codes_t,
         work.half_norms, work.pack_norms, work.doubtful_count, first_bad_row(op), op.codebook.data, K, D,
         work.packed_K, work.packed_D);
  return work;
}

void recheck_lookup(const LookupOp& op, const LookupWork& work, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const auto blocks = unsigned(std::min(kMaxBlocks, (N + kRows - 1) / kRows));
  launch("lookup_recheck", lookup_recheck_kernel, {blocks, unsigned(kThreads)}, stream, op.codes.data,
         work.doubtful, work.doubtful_count, op.latents.data, op.codebook.data, work.codes_t, work.half_norms,
         K, D, work.packed_K, work.packed_D);
}

}  // namespace vqlab
