// The one order in which long float sums are added, on every device and for any number of threads.
//
// Terms are cut into blocks of kSumBlock. In a block, lane l of kSumLanes adds the terms l, l + kSumLanes,
// ... in order; then the lanes are added pairwise, halving their number. The block sums are added the same
// way by one more block of any length. On a GPU a lane is a thread; on the CPU a row of lanes is a few
// vectors.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vqlab {

inline constexpr int64_t kSumLanes = 256;
inline constexpr int64_t kSumBlock = 4096;

// Floats of scratch that a sum of `terms` terms needs.
constexpr int64_t sum_blocks(int64_t terms) { return (terms + kSumBlock - 1) / kSumBlock; }

// Sum of term(i), i in [begin, end), lanes counted from begin.
template <class Term>
inline __attribute__((always_inline)) float lane_sum(int64_t begin, int64_t end, const Term& term) {
  float lane[kSumLanes] = {};
  int64_t row = begin;
  for (; row + kSumLanes <= end; row += kSumLanes)
    for (int64_t l = 0; l < kSumLanes; ++l) lane[l] += term(row + l);
  for (int64_t l = 0; row + l < end; ++l) lane[l] += term(row + l);
  for (int64_t half = kSumLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

// The whole sum from its block sums.
inline float finish_sum(const float* block_sums, int64_t blocks) {
  return lane_sum(0, blocks, [=](int64_t i) { return block_sums[i]; });
}

}  // namespace vqlab
