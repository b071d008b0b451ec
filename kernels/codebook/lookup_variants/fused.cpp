// Scores and argmax in one pass over packed codes, exact by a certificate; no N x K buffer.
//
// Math: s_k = x.c_k - |c_k|^2 / 2 in fp32 has the order of the distances, up to a bound (error_bound). A cell
// is kCodes consecutive codes. Per latent the best cell maximum, the second best and the number of the best
// cell are kept. Where these two differ by more than the bound, the nearest code is in the best cell: its few
// scores are computed again, and score64 decides among those within the bound. The other latents are
// collected for a second pass, in which score64 decides among all codes within the bound, in ascending order.
// Mapping: a lane is a latent, a broadcast is a code; a block of kBlockRows latents is a shard.
// Traffic: codes are packed once a call and read from L2 in chunks, latents are transposed once a block.
// Measured on Zen 3: tracking cells instead of single codes (10 operations instead of 30 per 6 codes) is 97
// instead of 68 GFLOP/s at (K, D) = (1024, 8); an inner loop unrolled for D = 8 is slower, 67.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codebook/lookup_variants/fused.cpp"
#include <hwy/foreach_target.h>  // before highway.h: compiles this file once per instruction set
#include <hwy/highway.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "../../core/parallel.hpp"
#include "../lookup_scores.hpp"
#include "../score64.hpp"

// What the instruction sets share.
#ifndef VQ_LOOKUP_FUSED_SHARED
#define VQ_LOOKUP_FUSED_SHARED
namespace vqlab::fused_lookup {

constexpr int64_t kCodes = 6;         // of a cell: 6 x 2 accumulators, 2 latents and 1 code fill 16 registers
constexpr int64_t kMaxLanes = 16;     // AVX-512
constexpr int64_t kBlockRows = 128;   // latents of a shard; a multiple of 2 * kMaxLanes
constexpr int64_t kRecheckRows = 32;  // collected latents of a shard; likewise
constexpr int64_t kPackCells = 64;    // cells of a packing shard
constexpr int64_t kChunkBytes = 256 * 1024;  // packed codes that stay in L2 while a block passes over them
constexpr int64_t kAheadBytes = 64 * 1024;   // latents of the next block that are fetched meanwhile: at most
using cpu_lookup::error_bound, cpu_lookup::ErrorBound, cpu_lookup::Nearest;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A latent whose best two cells are too close: codes that score below `floor` cannot be its nearest.
struct Doubtful {
  int32_t row;
  float floor;
};
struct BlockResult {
  int32_t doubtful, first_bad_row;  // how many; the row or -1
};

struct Search {
  const LookupOp& op;
  int64_t N, K, D, cells;
  float* packed;  // (cells, 1 + D, kCodes): -|c|^2 / 2, then the elements; codes from K on score -infinity
  double* pack_norms;    // largest |c|^2 of each packing shard
  Doubtful* doubtful;    // (blocks, kBlockRows)
  BlockResult* results;  // (blocks)
  float* work;           // (workers, kBlockRows, D + 3): transposed latents; best, second best, best cell
  ErrorBound bound;

  int64_t cell_floats() const { return (1 + D) * kCodes; }
  const float* cell(int64_t i) const { return packed + i * cell_floats(); }
};

// Brings memory into the first cache, some time later.
inline void prefetch(const float* data, int64_t floats) {
  constexpr int64_t kLine = 16;
  for (int64_t i = 0; i < floats; i += kLine) __builtin_prefetch(data + i);
}

// Lets the codes of a cell that are named in `candidates` compete, lowest first.
inline void compete(const Search& s, const float* latent, int64_t cell, uint32_t candidates,
                    Nearest& nearest) {
  for (; candidates != 0; candidates &= candidates - 1) {
    const int64_t k = cell * kCodes + std::countr_zero(candidates);
    if (k >= s.K) return;
    nearest.compete(s.op.codebook, latent, k);
  }
}

}  // namespace vqlab::fused_lookup
#endif

HWY_BEFORE_NAMESPACE();
namespace vqlab {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using namespace fused_lookup;
using Lanes = hn::CappedTag<float, kMaxLanes>;
using Vec = hn::Vec<Lanes>;

#if HWY_TARGET != HWY_SCALAR
// Elements d to d + 3 of four rows -> four rows of x, `stride` apart.
HWY_INLINE void transpose_quad(const float* const* rows, int64_t d, float* x, int64_t stride) {
  const hn::FixedTag<float, 4> quad;
  const auto a = hn::LoadU(quad, rows[0] + d), b = hn::LoadU(quad, rows[1] + d),
             c = hn::LoadU(quad, rows[2] + d), e = hn::LoadU(quad, rows[3] + d);
  const auto ab = hn::InterleaveLower(quad, a, b), ab_upper = hn::InterleaveUpper(quad, a, b),
             ce = hn::InterleaveLower(quad, c, e), ce_upper = hn::InterleaveUpper(quad, c, e);
  hn::StoreU(hn::ConcatLowerLower(quad, ce, ab), quad, x);
  hn::StoreU(hn::ConcatUpperUpper(quad, ce, ab), quad, x + stride);
  hn::StoreU(hn::ConcatLowerLower(quad, ce_upper, ab_upper), quad, x + 2 * stride);
  hn::StoreU(hn::ConcatUpperUpper(quad, ce_upper, ab_upper), quad, x + 3 * stride);
}
#endif

// x: rows (count of them; the rest of the tile is zero) -> (D, tile rows).
void transpose_rows(const float* const* rows, int64_t count, int64_t D, float* x) {
  const int64_t tile_rows = 2 * int64_t(hn::Lanes(Lanes()));
  int64_t r = 0;
#if HWY_TARGET != HWY_SCALAR
  for (; r + 4 <= count; r += 4) {
    int64_t d = 0;
    for (; d + 4 <= D; d += 4) transpose_quad(rows + r, d, x + d * tile_rows + r, tile_rows);
    for (; d < D; ++d)
      for (int64_t i = r; i < r + 4; ++i) x[d * tile_rows + i] = rows[i][d];
  }
#endif
  for (; r < tile_rows; ++r)
    for (int64_t d = 0; d < D; ++d) x[d * tile_rows + r] = r < count ? rows[r][d] : 0.0f;
}

// The scores of one cell for one tile of latents.
HWY_INLINE void score_cell(const float* HWY_RESTRICT x, const float* HWY_RESTRICT cell, int64_t D,
                           Vec (&score)[kCodes][2]) {
  const Lanes lanes;
  const int64_t width = int64_t(hn::Lanes(lanes));
#pragma GCC unroll 6
  for (int64_t c = 0; c < kCodes; ++c) score[c][0] = score[c][1] = hn::Set(lanes, cell[c]);
  for (int64_t d = 0; d < D; ++d) {
    cell += kCodes;
    const Vec x0 = hn::LoadU(lanes, x), x1 = hn::LoadU(lanes, x + width);
    x += 2 * width;
#pragma GCC unroll 6
    for (int64_t c = 0; c < kCodes; ++c) {
      const Vec code = hn::Set(lanes, cell[c]);
      score[c][0] = hn::MulAdd(x0, code, score[c][0]);
      score[c][1] = hn::MulAdd(x1, code, score[c][1]);
    }
  }
}

HWY_INLINE Vec cell_maximum(const Vec (&score)[kCodes][2], int v) {
  Vec most = score[0][v];
#pragma GCC unroll 6
  for (int64_t c = 1; c < kCodes; ++c) most = hn::Max(most, score[c][v]);
  return most;
}

// Passes one tile of latents over the cells [begin, end). state: (3, tile rows) best, second best, best cell.
void scan_cells(const Search& s, const float* x, int64_t begin, int64_t end, float* state) {
  const Lanes lanes;
  const hn::RebindToSigned<Lanes> integers;
  const int64_t width = int64_t(hn::Lanes(lanes));
  Vec best[2], second[2], where[2];
  for (int v = 0; v < 2; ++v) {
    best[v] = hn::LoadU(lanes, state + v * width);
    second[v] = hn::LoadU(lanes, state + (2 + v) * width);
    where[v] = hn::LoadU(lanes, state + (4 + v) * width);
  }
  const float* cell = s.cell(begin);
  for (int64_t i = begin; i < end; ++i, cell += s.cell_floats()) {
    Vec score[kCodes][2];
    score_cell(x, cell, s.D, score);
    const Vec here = hn::BitCast(lanes, hn::Set(integers, int32_t(i)));
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const Vec most = cell_maximum(score, v);
      second[v] = hn::Max(second[v], hn::Min(best[v], most));
      where[v] = hn::IfThenElse(hn::Lt(best[v], most), here, where[v]);
      best[v] = hn::Max(best[v], most);
    }
  }
  for (int v = 0; v < 2; ++v) {
    hn::StoreU(best[v], lanes, state + v * width);
    hn::StoreU(second[v], lanes, state + (2 + v) * width);
    hn::StoreU(where[v], lanes, state + (4 + v) * width);
  }
}

// Bit i: lane i is set.
template <class Tag>
HWY_INLINE uint32_t mask_bits(Tag lanes, hn::Mask<Tag> mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(lanes, mask, bytes);
  uint32_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

// Bit j: code j of the cell scores at least `floor`. Lanes are codes here; four sums shorten the chain.
HWY_INLINE uint32_t cell_candidates(const float* latent, const float* cell, int64_t D, float floor) {
  const hn::CappedTag<float, 8> lanes;
  uint32_t candidates = 0;
  for (int64_t c = 0; c < kCodes; c += int64_t(hn::Lanes(lanes))) {
    const float* codes = cell + kCodes + c;
    const auto term = [&](int64_t d, auto sum) HWY_ATTR {
      return hn::MulAdd(hn::Set(lanes, latent[d]), hn::LoadU(lanes, codes + d * kCodes), sum);
    };
    auto sum0 = hn::LoadU(lanes, cell + c), sum1 = hn::Zero(lanes), sum2 = sum1, sum3 = sum1;
    int64_t d = 0;
    for (; d + 4 <= D; d += 4) {
      sum0 = term(d, sum0), sum1 = term(d + 1, sum1);
      sum2 = term(d + 2, sum2), sum3 = term(d + 3, sum3);
    }
    for (; d < D; ++d) sum0 = term(d, sum0);
    const auto score = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
    candidates |= mask_bits(lanes, hn::Ge(score, hn::Set(lanes, floor))) << c;
  }
  return candidates & ((1u << kCodes) - 1);
}

// What the error bound says about the latents of a tile; bit r is row r.
struct TileVerdict {
  uint32_t bounded = 0;  // no score can overflow, so `floor` holds
  uint32_t certain = 0;  // and the nearest code is in the best cell
  float floor[2 * kMaxLanes];
};
TileVerdict judge_tile(const Search& s, const float* x, const float* state) {
  const Lanes lanes;
  const int64_t width = int64_t(hn::Lanes(lanes));
  const ErrorBound& b = s.bound;
  TileVerdict verdict;
  for (int64_t v = 0; v < 2; ++v) {
    Vec square = hn::Zero(lanes);
    for (int64_t d = 0; d < s.D; ++d) {
      const Vec element = hn::LoadU(lanes, x + (2 * d + v) * width);
      square = hn::MulAdd(element, element, square);
    }
    const Vec X = hn::Sqrt(hn::MulAdd(square, hn::Set(lanes, b.norm_scale), hn::Set(lanes, b.norm_floor)));
    const Vec reach = hn::MulAdd(X, hn::Set(lanes, b.C), hn::Set(lanes, b.half_square));
    const Vec slope = hn::MulAdd(X, hn::Set(lanes, b.a2), hn::Set(lanes, b.a1));
    const Vec best = hn::LoadU(lanes, state + v * width), second = hn::LoadU(lanes, state + (2 + v) * width);
    const Vec floor = hn::Sub(best, hn::MulAdd(X, slope, hn::Set(lanes, b.a0)));
    hn::StoreU(floor, lanes, verdict.floor + v * width);
    verdict.bounded |= mask_bits(lanes, hn::Lt(reach, hn::Set(lanes, 0x1p126f))) << (v * width);
    verdict.certain |= mask_bits(lanes, hn::Lt(second, floor)) << (v * width);
  }
  verdict.certain &= verdict.bounded;
  return verdict;
}

// Turns the state of a tile into codes, or into doubtful rows.
void settle_tile(const Search& s, const float* x, const float* state, int64_t first_row, int64_t count,
                 Doubtful* doubtful, BlockResult& result) {
  const float* best_cells = state + 4 * int64_t(hn::Lanes(Lanes()));
  const TileVerdict verdict = judge_tile(s, x, state);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = first_row + r;
    const float* latent = s.op.latents.data + row * s.D;
    const bool bounded = (verdict.bounded >> r & 1) != 0;
    if (r + 1 < count) prefetch(s.cell(std::bit_cast<int32_t>(best_cells[r + 1])), s.cell_floats());
    Nearest nearest;
    if (HWY_LIKELY((verdict.certain >> r & 1) != 0)) {
      const int64_t cell = std::bit_cast<int32_t>(best_cells[r]);
      const uint32_t candidates = cell_candidates(latent, s.cell(cell), s.D, verdict.floor[r]);
      if (HWY_LIKELY(candidates != 0 && (candidates & (candidates - 1)) == 0))
        nearest.code = cell * kCodes + std::countr_zero(candidates);
      else
        compete(s, latent, cell, candidates, nearest);
    } else if (bounded || is_finite_row(latent, s.D)) {
      doubtful[result.doubtful++] = {int32_t(row), bounded ? verdict.floor[r] : -kInfinity};
    } else if (result.first_bad_row < 0) {
      result.first_bad_row = int32_t(row);
    }
    s.op.codes.data[row] = int32_t(nearest.code);
  }
}

void search_block(const Search& s, int64_t block, int worker) {
  const int64_t tile_rows = 2 * int64_t(hn::Lanes(Lanes()));
  const int64_t first = block * kBlockRows, count = HWY_MIN(kBlockRows, s.N - first);
  float* x = s.work + worker * kBlockRows * (s.D + 3);
  float* state = x + kBlockRows * s.D;
  for (int64_t r = 0; r < count; r += tile_rows) {
    const float* rows[2 * kMaxLanes];
    const int64_t filled = HWY_MIN(tile_rows, count - r);
    for (int64_t i = 0; i < filled; ++i) rows[i] = s.op.latents.data + (first + r + i) * s.D;
    transpose_rows(rows, filled, s.D, x + r * s.D);
    for (int64_t i = 0; i < 2 * tile_rows; ++i) state[3 * r + i] = -kInfinity;
    std::memset(state + 3 * r + 2 * tile_rows, 0, size_t(tile_rows) * sizeof(float));
  }
  const int64_t chunk = HWY_MAX(int64_t(1), kChunkBytes / (s.cell_floats() * int64_t(sizeof(float))));
  const bool fetch_ahead = kBlockRows * s.D * int64_t(sizeof(float)) <= kAheadBytes;
  for (int64_t cell = 0; cell < s.cells; cell += chunk)
    for (int64_t r = 0; r < count; r += tile_rows) {
      const int64_t next = first + kBlockRows + r;
      if (cell == 0 && fetch_ahead && next < s.N)
        prefetch(s.op.latents.data + next * s.D, HWY_MIN(tile_rows, s.N - next) * s.D);
      scan_cells(s, x + r * s.D, cell, HWY_MIN(s.cells, cell + chunk), state + 3 * r);
    }
  BlockResult result{.doubtful = 0, .first_bad_row = -1};
  for (int64_t r = 0; r < count; r += tile_rows)
    settle_tile(s, x + r * s.D, state + 3 * r, first + r, HWY_MIN(tile_rows, count - r), s.doubtful + first,
                result);
  s.results[block] = result;
}

// The second pass: every code within the bound competes, for each row of the list.
void recheck_rows(const Search& s, const Doubtful* list, int64_t count, int worker) {
  const Lanes lanes;
  const int64_t width = int64_t(hn::Lanes(lanes)), tile_rows = 2 * width;
  float* x = s.work + worker * kBlockRows * (s.D + 3);
  for (int64_t begin = 0; begin < count; begin += tile_rows) {
    const int64_t filled = HWY_MIN(tile_rows, count - begin);
    const float* rows[2 * kMaxLanes];
    float floors[2 * kMaxLanes];
    Nearest nearest[2 * kMaxLanes];
    for (int64_t r = 0; r < tile_rows; ++r) {
      floors[r] = r < filled ? list[begin + r].floor : kInfinity;
      if (r < filled) rows[r] = s.op.latents.data + list[begin + r].row * s.D;
    }
    transpose_rows(rows, filled, s.D, x);
    for (int64_t cell = 0; cell < s.cells; ++cell) {
      Vec score[kCodes][2];
      score_cell(x, s.cell(cell), s.D, score);
      const auto far0 = hn::Lt(cell_maximum(score, 0), hn::LoadU(lanes, floors));
      const auto far1 = hn::Lt(cell_maximum(score, 1), hn::LoadU(lanes, floors + width));
      if (hn::AllTrue(lanes, hn::And(far0, far1))) continue;
      float scores[kCodes][2 * kMaxLanes];
      for (int64_t c = 0; c < kCodes; ++c)
        for (int v = 0; v < 2; ++v) hn::StoreU(score[c][v], lanes, scores[c] + v * width);
      for (int64_t r = 0; r < filled; ++r) {
        uint32_t candidates = 0;  // a score that overflowed to NaN is one
        for (int64_t c = 0; c < kCodes; ++c) candidates |= uint32_t(!(scores[c][r] < floors[r])) << c;
        compete(s, rows[r], cell, candidates, nearest[r]);
      }
    }
    for (int64_t r = 0; r < filled; ++r) s.op.codes.data[list[begin + r].row] = int32_t(nearest[r].code);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace vqlab
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vqlab {
namespace {

using namespace fused_lookup;
HWY_EXPORT(search_block);
HWY_EXPORT(recheck_rows);

int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Where each part of the scratch begins, in bytes.
struct Layout {
  int64_t packed, pack_norms, doubtful, results, work, bytes;
};
Layout lay_out(int64_t N, int64_t K, int64_t D) {
  int64_t end = 0;
  const auto take = [&](int64_t count, size_t size) {
    const int64_t begin = end;
    end = pieces(begin + count * int64_t(size), 64) * 64;
    return begin;
  };
  const int64_t cells = pieces(K, kCodes), blocks = pieces(N, kBlockRows);
  Layout at{};
  at.packed = take(cells * (1 + D) * kCodes + 8, sizeof(float));  // vectors of 8 reach past the last cell
  at.pack_norms = take(pieces(cells, kPackCells), sizeof(double));
  at.doubtful = take(blocks * kBlockRows, sizeof(Doubtful));
  at.results = take(blocks, sizeof(BlockResult));
  at.work = take(worker_count() * kBlockRows * (D + 3), sizeof(float));
  at.bytes = end + 64;  // the scratch may begin anywhere
  return at;
}

Search prepare(const LookupOp& op) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const Layout at = lay_out(N, K, D);
  const auto address = reinterpret_cast<uintptr_t>(op.scratch.data);
  std::byte* base = op.scratch.data + (64 - address % 64) % 64;
  return {.op = op,
          .N = N,
          .K = K,
          .D = D,
          .cells = pieces(K, kCodes),
          .packed = reinterpret_cast<float*>(base + at.packed),
          .pack_norms = reinterpret_cast<double*>(base + at.pack_norms),
          .doubtful = reinterpret_cast<Doubtful*>(base + at.doubtful),
          .results = reinterpret_cast<BlockResult*>(base + at.results),
          .work = reinterpret_cast<float*>(base + at.work),
          .bound = {}};
}

// One shard of packing.
void pack_cells(const Search& s, int64_t shard) {
  double largest = 0.0;
  for (int64_t cell = shard * kPackCells; cell < std::min(s.cells, (shard + 1) * kPackCells); ++cell) {
    float* packed = s.packed + cell * s.cell_floats();
    for (int64_t c = 0; c < kCodes; ++c) {
      const int64_t k = cell * kCodes + c;
      const float* code = s.op.codebook.data + k * s.D;
      double norm = 0.0;
      for (int64_t d = 0; d < s.D; ++d) {
        const float element = k < s.K ? code[d] : 0.0f;
        packed[(1 + d) * kCodes + c] = element;
        norm += double(element) * double(element);
      }
      packed[c] = k < s.K ? float(-0.5 * norm) : -kInfinity;
      largest = std::max(largest, norm);
    }
  }
  s.pack_norms[shard] = largest;
}

void run(const LookupOp& op, Stream) {
  Search s = prepare(op);
  const int64_t pack_shards = pieces(s.cells, kPackCells), blocks = pieces(s.N, kBlockRows);
  parallel_for(pack_shards, [&](int64_t shard, int) { pack_cells(s, shard); });
  s.bound = error_bound(*std::max_element(s.pack_norms, s.pack_norms + pack_shards), s.D);

  parallel_for(blocks, [&](int64_t block, int worker) {
    HWY_DYNAMIC_DISPATCH(search_block)(s, block, worker);
  });

  int32_t first_bad_row = -1;
  int64_t doubtful = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const BlockResult& result = s.results[block];
    if (first_bad_row < 0) first_bad_row = result.first_bad_row;
    const Doubtful* rows = s.doubtful + block * kBlockRows;
    std::copy(rows, rows + result.doubtful, s.doubtful + doubtful);
    doubtful += result.doubtful;
  }
  op.first_bad_row.data[0] = first_bad_row;
  parallel_for(pieces(doubtful, kRecheckRows), [&](int64_t shard, int worker) {
    const int64_t begin = shard * kRecheckRows;
    HWY_DYNAMIC_DISPATCH(recheck_rows)
    (s, s.doubtful + begin, std::min(kRecheckRows, doubtful - begin), worker);
  });
}

}  // namespace

extern const LookupVariant lookup_fused;
const LookupVariant lookup_fused = {
    .name = "fused",
    .device = Device::cpu,
    .idea = "fp32 scores and argmax in registers; a certificate per row, score64 where it fails",
    .exact = true,
    .supports = [](int64_t, int64_t, int64_t) { return true; },
    .scratch_bytes = [](int64_t N, int64_t K, int64_t D) { return lay_out(N, K, D).bytes; },
    .run = run,
};

}  // namespace vqlab
#endif  // HWY_ONCE
