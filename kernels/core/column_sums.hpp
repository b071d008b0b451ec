// The one order in which rows are added up to column sums, on every device and for any number of threads.
//
// The rows are cut into slices. In a slice, lane l adds the rows l, l + lanes, ... in order; then the lanes
// are added pairwise, halving their number. The sums of the slices are added the same way as one slice. On a
// GPU a lane is a row of a block's threads; on the CPU all lanes of a slice are one array, which vectors add.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vqlab {

inline constexpr int64_t kColumnBlock = 256;    // lanes times columns that a block of a GPU owns
inline constexpr int64_t kColumnMaxWidth = 32;  // its columns: 128 bytes of a row

// Columns of a block: a power of two that holds all, or the widest.
constexpr int64_t column_width(int64_t columns) {
  int64_t width = 1;
  while (width < std::min(columns, kColumnMaxWidth)) width *= 2;
  return width;
}

constexpr int64_t column_lanes(int64_t columns) { return kColumnBlock / column_width(columns); }

struct ColumnSlices {
  int64_t count, rows;  // the last ones may have fewer rows, or none
};

constexpr ColumnSlices column_slices(int64_t rows, int64_t columns) {
  constexpr int64_t kRowsPerLane = 16, kMaxCount = 1024;
  const int64_t slice = column_lanes(columns) * kRowsPerLane;
  const int64_t count = std::clamp((rows + slice - 1) / slice, int64_t(1), kMaxCount);
  return {count, (rows + count - 1) / count};
}

}  // namespace vqlab
