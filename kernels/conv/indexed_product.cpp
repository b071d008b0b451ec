#include "indexed_product.hpp"

#include <algorithm>

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

HWY_INLINE void product_tile(const PatchProduct& p, int64_t first_row, int64_t panel) {
  const Patches& x = p.patches;
  const float* element[kTileRows];
  Floats sum[kTileRows][kVectors];
  for (int r = 0; r < kTileRows; ++r) {
    element[r] = x.source + x.row_offset[std::min(first_row + r, x.rows - 1)];
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(kVector);
  }
  const float* weight = p.weight + panel * x.terms * kPanel;
  for (int64_t k = 0; k < x.terms; ++k) add_products(sum, element, x.term_offset[k], weight + k * kPanel);

  const int64_t count = std::min(kPanel, p.columns - panel * kPanel);
  for (int r = 0; r < kTileRows; ++r) {
    float* output = p.output + p.output_offset[std::min(first_row + r, x.rows - 1)] + panel * kPanel;
    HWY_ALIGN float partial[kPanel];
    for (int v = 0; v < kVectors; ++v) {
      Floats value = hn::Add(sum[r][v], hn::LoadU(kVector, p.bias + panel * kPanel + v * kLanes));
      if (p.relu) value = hn::IfThenZeroElse(hn::Le(value, hn::Zero(kVector)), value);
      hn::StoreU(value, kVector, (count == kPanel ? output : partial) + v * kLanes);
    }
    if (count < kPanel) std::copy_n(partial, count, output);
  }
}

void product(const PatchProduct& p) {
  for (int64_t panel = 0; panel < panels(p.columns); ++panel)
    for (int64_t row = 0; row < p.patches.rows; row += kTileRows) product_tile(p, row, panel);
}

HWY_INLINE void gradient_tile(const PatchGradient& p, int64_t first_row, int64_t last_row, int64_t first_term,
                              int64_t panel) {
  const Patches& x = p.patches;
  const float* element[kTileRows];
  Floats sum[kTileRows][kVectors];
  float* gradient = p.gradient + (panel * x.terms + first_term) * kPanel;
  const int64_t count = std::min<int64_t>(kTileRows, x.terms - first_term);
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t term = std::min<int64_t>(r, count - 1);
    element[r] = x.source + x.term_offset[first_term + term];
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] =
          first_row == 0 ? hn::Zero(kVector) : hn::LoadU(kVector, gradient + term * kPanel + v * kLanes);
  }
  const float* right = p.right + panel * kPanel;
  for (int64_t row = first_row; row < last_row; ++row)
    add_products(sum, element, x.row_offset[row], right + row * p.columns);
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kVectors && r < count; ++v)
      hn::StoreU(sum[r][v], kVector, gradient + r * kPanel + v * kLanes);
}

// Rows that are taken at once, so that their part of X and of `right` stays in the cache for all tiles.
constexpr int64_t kRowBlock = 128;

void gradient(const PatchGradient& p) {
  const Patches& x = p.patches;
  for (int64_t row = 0; row < x.rows; row += kRowBlock)
    for (int64_t panel = 0; panel < panels(p.columns); ++panel)
      for (int64_t term = 0; term < x.terms; term += kTileRows)
        gradient_tile(p, row, std::min(x.rows, row + kRowBlock), term, panel);
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
