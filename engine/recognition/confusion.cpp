#include "confusion.hpp"

#include <algorithm>
#include <array>

#include "engine/io/png.hpp"
#include "engine/pictures.hpp"

namespace vqlab {

std::vector<int64_t> confusion_counts(const std::vector<int32_t>& labels, const std::vector<int32_t>& found,
                                      int64_t classes) {
  VQ_REQUIRE(labels.size() == found.size(), "confusion: {} labels and {} classes found", labels.size(),
             found.size());
  std::vector<int64_t> counts(size_t(classes * classes));
  for (size_t i = 0; i < labels.size(); ++i) ++counts[size_t(labels[i] * classes + found[i])];
  return counts;
}

std::vector<Confusion> worst_confusions(const std::vector<int64_t>& counts, int64_t classes, int64_t limit) {
  std::vector<Confusion> list;
  for (int32_t t = 0; t < classes; ++t)
    for (int32_t f = 0; f < classes; ++f)
      if (const int64_t images = counts[size_t(t * classes + f)]; t != f && images > 0)
        list.push_back({t, f, images});
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& a, const auto& b) { return a.images > b.images; });
  if (int64_t(list.size()) > limit) list.resize(size_t(limit));
  return list;
}

void write_confusion_matrix(const std::string& path, const std::vector<int64_t>& counts, int64_t classes) {
  constexpr int64_t kCell = 32;
  PictureGrid grid(classes, classes, kCell, kCell, kCell);
  for (int64_t t = 0; t < classes; ++t) {
    int64_t total = 0;
    for (int64_t f = 0; f < classes; ++f) total += counts[size_t(t * classes + f)];
    for (int64_t f = 0; f < classes; ++f) {
      // The root shows rare confusions too.
      const double share = total > 0 ? double(counts[size_t(t * classes + f)]) / double(total) : 0.0;
      const double depth = std::sqrt(share);
      const std::array<double, 3> full =
          t == f ? std::array{20.0, 60.0, 140.0} : std::array{170.0, 20.0, 20.0};
      std::vector<uint8_t> cell(size_t(kCell * kCell * 3));
      for (size_t i = 0; i < cell.size(); ++i) cell[i] = uint8_t(245.0 - depth * (245.0 - full[i % 3]));
      grid.paste(t, f, cell, 3);
    }
  }
  write_png(path, grid.view(), {{"Description", "rows: class of the label; columns: class found"}});
}

void write_confused_images(const std::string& path, const ImageSet& test, const std::vector<int32_t>& found,
                           const std::vector<Confusion>& confusions, int64_t columns) {
  PictureGrid grid(int64_t(confusions.size()), columns, test.height, test.width);
  const int64_t size = test.height * test.width * test.channels;
  for (size_t row = 0; row < confusions.size(); ++row) {
    int64_t column = 0;
    for (int64_t i = 0; i < test.count && column < columns; ++i) {
      if (test.labels[size_t(i)] != confusions[row].label || found[size_t(i)] != confusions[row].found)
        continue;
      const uint8_t* image = test.pixels.data() + i * size;
      grid.paste(int64_t(row), column++, {image, image + size}, test.channels);
    }
  }
  write_png(path, grid.view());
}

}  // namespace vqlab
