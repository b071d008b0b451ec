// Which classes are taken for which.
#pragma once

#include <string>
#include <vector>

#include "engine/data/image_set.hpp"

namespace vqlab {

// counts[t * classes + f]: images of class t found to be f.
std::vector<int64_t> confusion_counts(const std::vector<int32_t>& labels, const std::vector<int32_t>& found,
                                      int64_t classes);

// A pair of different classes, and how many images of the first were found to be of the second.
struct Confusion {
  int32_t label, found;
  int64_t images;
};
// The most frequent ones first, none without images, at most `limit`.
std::vector<Confusion> worst_confusions(const std::vector<int64_t>& counts, int64_t classes, int64_t limit);

// A PNG of the counts: a row for each class of the label, a column for each that was found, from white (none)
// to dark (all of the row); blue on the diagonal, red beside it.
void write_confusion_matrix(const std::string& path, const std::vector<int64_t>& counts, int64_t classes);

// A PNG of test images: a row for each of the confusions, with the first `columns` images of it.
void write_confused_images(const std::string& path, const ImageSet& test, const std::vector<int32_t>& found,
                           const std::vector<Confusion>& confusions, int64_t columns);

}  // namespace vqlab
