#include "indexed_product.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/conv/indexed_product.cpp"
#include <hwy/foreach_target.h>  // before highway.h: compiles this file once per instruction set
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace vqlab {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A tile of at most kTileRows x 16 sums for each panel stays in registers: 12 x 1, 6 x 2 or 3 x 4 vectors. Of
// the 32 registers of AVX-512 that takes 12, and a load for each product: there a tile has two panels, if it
// can, and half as many loads.
using Vector = hn::CappedTag<float, size_t(kPanel)>;
constexpr Vector kVector;
constexpr int kLanes = int(hn::MaxLanes(kVector));
constexpr int kVectors = int(kPanel) / kLanes;
constexpr int kTileRows = kVectors < 12 ? 12 / kVectors : 1;
constexpr int kMostPanels = kVectors == 1 ? 2 : 1;
using Floats = hn::Vec<Vector>;

// Calls visit(first, rows) for tiles that cover [begin, end), `rows` being a constant: kTileRows, but at the
// end two thirds or a third of them where that suffices. A tile may reach beyond the end.
template <class Visit>
HWY_INLINE void for_each_tile(int64_t begin, int64_t end, const Visit& visit) {
  constexpr int kThird = kTileRows / 3;  // 0 without vectors
  for (; end - begin > 2 * kThird; begin += kTileRows) visit(begin, std::integral_constant<int, kTileRows>());
  if constexpr (kThird > 0) {
    if (end - begin > kThird)
      visit(begin, std::integral_constant<int, 2 * kThird>());
    else if (end > begin)
      visit(begin, std::integral_constant<int, kThird>());
  }
}

// Broadcast elements times a row of 16 in each panel, added to the tile.
template <int kRows, int kPanels>
HWY_INLINE void add_products(Floats (&sum)[kRows][kPanels * kVectors], const float* const (&element)[kRows],
                             int64_t offset, const float* row, int64_t panel_step) {
  Floats right[kPanels * kVectors];
  for (int p = 0; p < kPanels; ++p)
    for (int v = 0; v < kVectors; ++v)
      right[p * kVectors + v] = hn::LoadU(kVector, row + p * panel_step + v * kLanes);
  for (int r = 0; r < kRows; ++r) {
    const Floats left = hn::Set(kVector, element[r][offset]);
    for (int v = 0; v < kPanels * kVectors; ++v) sum[r][v] = hn::MulAdd(left, right[v], sum[r][v]);
  }
}

// Rows beyond the last one repeat it.
template <int kRows, int kPanels>
HWY_INLINE void product_tile(const PatchProduct& p, int64_t first_row, int64_t first_panel) {
  const Patches& x = p.patches;
  const float* element[kRows];
  Floats sum[kRows][kPanels * kVectors];
  for (int r = 0; r < kRows; ++r) {
    element[r] = x.source + x.row_offset[std::min(first_row + r, x.rows - 1)];
    for (int v = 0; v < kPanels * kVectors; ++v) sum[r][v] = hn::Zero(kVector);
  }
  const int64_t panel_step = x.terms * kPanel;
  const float* weight = p.weight + first_panel * panel_step;
  for (int64_t run = 0; run < x.runs.count; ++run) {
    const int64_t begin = x.runs.first + run * x.runs.step;
    for (int64_t k = begin; k < begin + x.runs.length; ++k)
      add_products<kRows, kPanels>(sum, element, x.term_offset[k], weight + k * kPanel, panel_step);
  }

  // The bias comes last, as on a GPU. Without branches, or the compiler moves all sums to memory. NaN is not
  // less than 0.
  const Floats least = hn::Set(kVector, p.relu ? 0.0f : -std::numeric_limits<float>::infinity());
  const int64_t first_column = first_panel * kPanel,
                columns = std::min(kPanels * kPanel, p.columns - first_column);
  for (int v = 0; v < kPanels * kVectors; ++v) {
    const Floats bias = hn::LoadU(kVector, p.bias + first_column + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      sum[r][v] = hn::Add(sum[r][v], bias);
      sum[r][v] = hn::IfThenElse(hn::Le(sum[r][v], least), least, sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* output = p.output + p.output_offset[std::min(first_row + r, x.rows - 1)] + first_column;
    if (HWY_LIKELY(columns == kPanels * kPanel)) {
      for (int v = 0; v < kPanels * kVectors; ++v) hn::StoreU(sum[r][v], kVector, output + v * kLanes);
    } else {
      float whole[kPanels * kPanel];
      for (int v = 0; v < kPanels * kVectors; ++v) hn::StoreU(sum[r][v], kVector, whole + v * kLanes);
      std::copy_n(whole, columns, output);
    }
  }
}

template <int kPanels>
void product_of_panels(const PatchProduct& p, int64_t panel) {
  for_each_tile(0, p.patches.rows,
                [&](int64_t row, auto rows) HWY_ATTR { product_tile<rows, kPanels>(p, row, panel); });
}

void product(const PatchProduct& p) {
  int64_t panel = 0;
  for (; panel + kMostPanels <= panels(p.columns); panel += kMostPanels)
    product_of_panels<kMostPanels>(p, panel);
  for (; panel < panels(p.columns); ++panel) product_of_panels<1>(p, panel);
}

// Terms beyond `count` repeat the last one and are not stored.
template <int kTerms, int kPanels>
HWY_INLINE void gradient_tile(const PatchGradient& p, int64_t first_row, int64_t last_row, int64_t first_term,
                              int64_t count, int64_t first_panel) {
  const Patches& x = p.patches;
  const float* element[kTerms];
  Floats sum[kTerms][kPanels * kVectors];
  float* gradient = p.gradient + (first_panel * x.terms + first_term) * kPanel;
  const auto place = [&](int64_t term, int v) HWY_ATTR {
    return gradient + v / kVectors * x.terms * kPanel + term * kPanel + v % kVectors * kLanes;
  };
  for (int r = 0; r < kTerms; ++r) {
    const int64_t term = std::min<int64_t>(r, count - 1);
    element[r] = x.source + x.term_offset[first_term + term];
    for (int v = 0; v < kPanels * kVectors; ++v) sum[r][v] = hn::LoadU(kVector, place(term, v));
  }
  const float* right = p.right + first_panel * kPanel;
  for (int64_t row = first_row; row < last_row; ++row)
    add_products<kTerms, kPanels>(sum, element, x.row_offset[row], right + p.right_offset[row], kPanel);
  for (int r = 0; r < kTerms; ++r)
    for (int v = 0; v < kPanels * kVectors && r < count; ++v) hn::StoreU(sum[r][v], kVector, place(r, v));
}

// The rows are taken in blocks whose parts of X and of `right` stay in the L1 cache for all tiles. Rows of
// many columns are a large power of two apart and share few cache sets: fewer of them. Measured (AVX2, 32 KiB
// of L1, 128 columns): 81 GFLOP/s with blocks of 32 rows, 70 with 64, 58 with 128; at 32 columns 88, 94
// and 81.
int64_t block_rows(int64_t rows, int64_t columns) {
  const int64_t most = std::clamp<int64_t>(4096 / columns, 16, 64), blocks = (rows + most - 1) / most;
  return (rows + blocks - 1) / blocks;
}

template <int kPanels>
void gradient_of_panels(const PatchGradient& p, int64_t first_row, int64_t last_row, int64_t panel) {
  const TermRuns& runs = p.patches.runs;
  for (int64_t run = 0; run < runs.count; ++run) {
    const int64_t begin = runs.first + run * runs.step, end = begin + runs.length;
    for_each_tile(begin, end, [&](int64_t term, auto terms) HWY_ATTR {
      gradient_tile<terms, kPanels>(p, first_row, last_row, term, std::min<int64_t>(terms, end - term),
                                    panel);
    });
  }
}

void gradient(const PatchGradient& p) {
  const int64_t rows = p.patches.rows, block = block_rows(rows, p.columns);
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t last = std::min(rows, row + block);
    int64_t panel = 0;
    for (; panel + kMostPanels <= panels(p.columns); panel += kMostPanels)
      gradient_of_panels<kMostPanels>(p, row, last, panel);
    for (; panel < panels(p.columns); ++panel) gradient_of_panels<1>(p, row, last, panel);
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
