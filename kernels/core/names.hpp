// The nearest valid name, for the hint of an error about an unknown one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vqlab {

// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein 1966).
inline size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // row[j]: from the first i characters of a to the first j of b
  std::iota(row.begin(), row.end(), size_t(0));
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

// The first of the names at the smallest edit distance from `wanted`; empty if none is near, that is, if more
// than half of its letters would have to change.
inline std::string nearest_name(std::string_view wanted, std::span<const std::string_view> names) {
  const auto nearest = std::min_element(names.begin(), names.end(), [&](auto a, auto b) {
    return edit_distance(wanted, a) < edit_distance(wanted, b);
  });
  if (nearest == names.end() ||
      2 * edit_distance(wanted, *nearest) > std::max(wanted.size(), nearest->size()))
    return "";
  return std::string(*nearest);
}

}  // namespace vqlab
