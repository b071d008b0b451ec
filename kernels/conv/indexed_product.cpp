#include "indexed_product.hpp"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/conv/indexed_product.cpp"
#include <hwy/foreach_target.h>  // before highway.h: compiles this file once per instruction set
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace vqlab {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A tile of kTileRows x 16 sums stays in registers: 12 x 1, 6 x 2 or 3 x 4 vectors.
using Vector = hn::CappedTag<float, size_t(kPanel)>;
constexpr Vector kVector;
constexpr int kLanes = int(hn::MaxLanes(kVector));
constexpr int kVectors = int(kPanel) / kLanes;
constexpr int kTileRows = kVectors < 12 ? 12 / kVectors : 1;
using Floats = hn::Vec<Vector>;

// Broadcast elements times a row of 16, added to the tile.
template <int kRows>
HWY_INLINE void add_products(Floats (&sum)[kRows][kVectors], const float* const (&element)[kRows],
                             int64_t offset, const float* row) {
  Floats right[kVectors];
  for (int v = 0; v < kVectors; ++v) right[v] = hn::LoadU(kVector, row + v * kLanes);
  for (int r = 0; r < kRows; ++r) {
    const Floats left = hn::Set(kVector, element[r][offset]);
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
  }
}

// Rows beyond the last one repeat it.
HWY_INLINE void product_tile(const PatchProduct& p, int64_t first_row, int64_t panel) {
  const Patches& x = p.patches;
  const float* element[kTileRows];
  Floats sum[kTileRows][kVectors];
  for (int r = 0; r < kTileRows; ++r) {
    element[r] = x.source + x.row_offset[std::min(first_row + r, x.rows - 1)];
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(kVector);
  }
  const float* weight = p.weight + panel * x.terms * kPanel;
  for (int64_t run = 0; run < x.runs.count; ++run) {
    const int64_t begin = x.runs.first + run * x.runs.step;
    for (int64_t k = begin; k < begin + x.runs.length; ++k)
      add_products(sum, element, x.term_offset[k], weight + k * kPanel);
  }

  // The bias comes last, as on a GPU. Without branches, or the compiler moves all sums to memory. NaN is not
  // less than 0.
  const Floats least = hn::Set(kVector, p.relu ? 0.0f : -std::numeric_limits<float>::infinity());
  for (int v = 0; v < kVectors; ++v) {
    const Floats bias = hn::LoadU(kVector, p.bias + panel * kPanel + v * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      sum[r][v] = hn::Add(sum[r][v], bias);
      sum[r][v] = hn::IfThenElse(hn::Le(sum[r][v], least), least, sum[r][v]);
    }
  }
  const int64_t count = std::min(kPanel, p.columns - panel * kPanel);
  for (int r = 0; r < kTileRows; ++r) {
    float* output = p.output + p.output_offset[std::min(first_row + r, x.rows - 1)] + panel * kPanel;
    if (HWY_LIKELY(count == kPanel)) {
      for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], kVector, output + v * kLanes);
    } else {
      float whole[kPanel];
      for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], kVector, whole + v * kLanes);
      std::copy_n(whole, count, output);
    }
  }
}

void product(const PatchProduct& p) {
  for (int64_t panel = 0; panel < panels(p.columns); ++panel)
    for (int64_t row = 0; row < p.patches.rows; row += kTileRows) product_tile(p, row, panel);
}

// Terms beyond `count` repeat the last one and are not stored.
HWY_INLINE void gradient_tile(const PatchGradient& p, int64_t first_row, int64_t last_row, int64_t first_term,
                              int64_t count, int64_t panel) {
  const Patches& x = p.patches;
  const float* element[kTileRows];
  Floats sum[kTileRows][kVectors];
  float* gradient = p.gradient + (panel * x.terms + first_term) * kPanel;
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t term = std::min<int64_t>(r, count - 1);
    element[r] = x.source + x.term_offset[first_term + term];
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::LoadU(kVector, gradient + term * kPanel + v * kLanes);
  }
  const float* right = p.right + panel * kPanel;
  for (int64_t row = first_row; row < last_row; ++row)
    add_products(sum, element, x.row_offset[row], right + p.right_offset[row]);
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVectors && r < count; ++v)
      hn::StoreU(sum[r][v], kVector, gradient + r * kPanel + v * kLanes);
}

// The rows are taken in blocks whose parts of X and of `right` stay in the L1 cache for all tiles. Rows of
// many columns are a large power of two apart and share few cache sets: fewer of them. Measured (AVX2, 32 KiB
// of L1, 128 columns): 81 GFLOP/s with blocks of 32 rows, 70 with 64, 58 with 128; at 32 columns 88, 94
// and 81.
int64_t block_rows(int64_t rows, int64_t columns) {
  const int64_t most = std::clamp<int64_t>(4096 / columns, 16, 64), blocks = (rows + most - 1) / most;
  return (rows + blocks - 1) / blocks;
}

void gradient(const PatchGradient& p) {
  const TermRuns& runs = p.patches.runs;
  const int64_t rows = p.patches.rows, block = block_rows(rows, p.columns);
  for (int64_t row = 0; row < rows; row += block)
    for (int64_t panel = 0; panel < panels(p.columns); ++panel)
      for (int64_t run = 0; run < runs.count; ++run) {
        const int64_t begin = runs.first + run * runs.step, end = begin + runs.length;
        for (int64_t term = begin; term < end; term += kTileRows)
          gradient_tile(p, row, std::min(rows, row + block), term, std::min<int64_t>(kTileRows, end - term),
                        panel);
      }
}

}  // namespace HWY_NAMESPACE
}  // namespace vqlab
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vqlab {

HWY_EXPORT(product);
HWY_EXPORT(gradient);

void multiply(const PatchProduct& p) { HWY_DYNAMIC_DISPATCH(product)(p); }
void multiply(const PatchGradient& p) { HWY_DYNAMIC_DISPATCH(gradient)(p); }

}  // namespace vqlab
#endif
