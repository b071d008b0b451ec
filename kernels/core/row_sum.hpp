// The one order in which the terms of a row are added, on every device: lane l of kRowLanes adds the terms l,
// l + kRowLanes, ... in order; then the lanes are added pairwise, halving their number. All in double. On a
// GPU the lanes are those of a warp (row_sum.cuh).
#pragma once

#include <cstdint>

namespace vqlab {

inline constexpr int64_t kRowLanes = 32;

// Sum of term(d), d in [0, D).
template <class Term>
inline __attribute__((always_inline)) double row_sum(int64_t D, const Term& term) {
  double lane[kRowLanes] = {};
  int64_t row = 0;
  for (; row + kRowLanes <= D; row += kRowLanes)
    for (int64_t l = 0; l < kRowLanes; ++l) lane[l] += term(row + l);
  for (int64_t l = 0; row + l < D; ++l) lane[l] += term(row + l);
  for (int64_t half = kRowLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

}  // namespace vqlab
