#include "fsq.hpp"

#include <algorithm>
#include <atomic>

#include "../core/parallel.hpp"
#include "score64.hpp"

namespace vqlab {
namespace {

constexpr int64_t kRowsPerPiece = 256;

void check_grid(const char* name, const FsqGrid& grid, const View<const float>& rows) {
  VQ_REQUIRE(rows.rank == 2 && grid.D == rows[1] && grid.K >= 2, "{}: a grid of {} dimensions for rows {}",
             name, grid.D, rows.shape());
}

// Returns whether the row is finite.
bool quantize_row(const FsqOp& op, int64_t n) {
  const int D = op.grid.D;
  const float* latent = op.latents.data + n * D;
  const bool finite = is_finite_row(latent, D);
  int32_t code = 0;
  for (int d = 0; d < D; ++d) {
    const int32_t digit = finite ? fsq_digit(op.grid, d, latent[d]) : 0;
    op.quantized.data[n * D + d] = fsq_value(op.grid, d, digit);
    code += digit * op.grid.base[d];
  }
  op.codes.data[n] = code;
  return finite;
}

}  // namespace

FsqGrid fsq_grid(std::span<const int64_t> levels) {
  VQ_REQUIRE(!levels.empty() && levels.size() <= size_t(kMaxFsqDimensions), "fsq: {} levels, not 1 to {}",
             levels.size(), kMaxFsqDimensions);
  FsqGrid grid;
  int64_t codes = 1;
  for (const int64_t L : levels) {
    VQ_REQUIRE(L >= 2 && L <= kMaxFsqLevel && codes * L <= kMaxFsqCodes,
               "fsq: a level of {} after {} codes is out of range", L, codes);
    const double half = double(L - 1) * (1.0 + 1e-3) / 2.0, offset = L % 2 == 0 ? 0.5 : 0.0;
    const double ratio = offset / half;
    const int d = grid.D++;
    grid.level[d] = int32_t(L);
    grid.base[d] = int32_t(codes);
    grid.width[d] = int32_t(L / 2);
    grid.half[d] = float(half);
    grid.offset[d] = float(offset);
    grid.shift[d] = float(0.5 * portable_log((1.0 + ratio) / (1.0 - ratio)));  // atanh
    codes *= L;
  }
  grid.K = int32_t(codes);
  return grid;
}

std::vector<float> fsq_codebook(const FsqGrid& grid) {
  std::vector<float> codebook;
  codebook.reserve(size_t(grid.K) * size_t(grid.D));
  for (int32_t code = 0; code < grid.K; ++code)
    for (int d = 0; d < grid.D; ++d) codebook.push_back(fsq_value(grid, d, fsq_digit_of_code(grid, d, code)));
  return codebook;
}

void FsqOp::check() const {
  check_grid("fsq", grid, latents);
  VQ_REQUIRE(same_shape(latents, quantized) && codes.size() == latents[0] && first_bad_row.size() == 1,
             "fsq: quantized {}, codes {} or first_bad_row {} does not fit latents {}", quantized.shape(),
             codes.shape(), first_bad_row.shape(), latents.shape());
  VQ_REQUIRE(!counts || counts.size() == grid.K, "fsq: counts {} for {} codes", counts.shape(), grid.K);
}

void FsqBackwardOp::check() const {
  check_grid("fsq backward", grid, latents);
  VQ_REQUIRE(same_shape(latents, d_latents) && same_shape(latents, d_quantized),
             "fsq backward: latents {}, d_latents {} and d_quantized {} differ", latents.shape(),
             d_latents.shape(), d_quantized.shape());
}

void FsqDecodeOp::check() const {
  check_grid("fsq decode", grid, quantized);
  VQ_REQUIRE(codes.size() == quantized[0], "fsq decode: {} codes for rows {}", codes.size(),
             quantized.shape());
}

void run_cpu(const FsqOp& op) {
  const int64_t N = op.latents[0];
  std::atomic<int64_t> first_bad = N;
  parallel_ranges(N, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    int64_t bad = N;
    for (int64_t n = begin; n < end; ++n)
      if (!quantize_row(op, n)) bad = std::min(bad, n);
    for (int64_t known = first_bad; bad < known && !first_bad.compare_exchange_weak(known, bad);) {
    }
  });
  op.first_bad_row.data[0] = first_bad < N ? int32_t(first_bad) : -1;
  if (!op.counts) return;
  std::fill_n(op.counts.data, op.counts.size(), 0);
  for (int64_t n = 0; n < N; ++n) ++op.counts.data[op.codes.data[n]];
}

void run_cpu(const FsqBackwardOp& op) {
  const int D = op.grid.D;
  parallel_ranges(op.latents[0], kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int d = 0; d < D; ++d)
        op.d_latents.data[n * D + d] =
            op.d_quantized.data[n * D + d] * fsq_slope(op.grid, d, op.latents.data[n * D + d]);
  });
}

void run_cpu(const FsqDecodeOp& op) {
  const int D = op.grid.D;
  for (int64_t n = 0; n < op.quantized[0]; ++n)
    for (int d = 0; d < D; ++d)
      op.quantized.data[n * D + d] = fsq_value(op.grid, d, fsq_digit_of_code(op.grid, d, op.codes.data[n]));
}

}  // namespace vqlab
