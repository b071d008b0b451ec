// The labels of a set of pictures: which classes there are, and who may see which.
#pragma once

#include "image_set.hpp"

namespace vqlab {

// Classes of a labelled set: the named ones, or one more than the largest label. Throws Error(data) if the
// set has no labels, or all of its pictures are of one class.
int64_t count_classes(const ImageSet& set, const std::string& where);

// Throws Error(data) if the set has no labels, or one that is not in [0, classes): the splits differ.
void require_classes(const ImageSet& set, int64_t classes, const std::string& where);

// `count` places in [0, labels.size()), in order: equally many of each class (of the first classes one more,
// if they do not divide), which ones is a function of (seed, draw). Throws Error(usage) if a class has too
// few.
std::vector<int64_t> draw_labelled(const std::vector<int32_t>& labels, int64_t classes, int64_t count,
                                   uint64_t seed, uint32_t draw);

}  // namespace vqlab
