// k nearest neighbours, by Euclidean distance and majority.
#pragma once

#include "features.hpp"
#include "kernels/codebook/lookup.hpp"

namespace vqlab {

// The class of each query: the one of most of its k nearest training rows; of several such the one whose row
// is nearest; of equally distant rows the first. The search is exact: the lookup kernels give the nearest row
// of each piece of the training rows, and only pieces whose nearest is among the k nearest can hold another
// of them. `labels` (training.rows). `lookup` serves where it supports the shape, else the device's first.
// Throws as require_neighbours().
std::vector<int32_t> nearest_neighbours(const Runtime& runtime, const FeatureMatrix& training,
                                        const std::vector<int32_t>& labels, const FeatureMatrix& queries,
                                        int64_t k, const LookupVariant* lookup = nullptr);

// Throws Error(usage) if k is more than the training rows.
void require_neighbours(int64_t k, int64_t rows);

}  // namespace vqlab
