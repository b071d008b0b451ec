// A small network on features: the classifier head of joint training, alone.
#pragma once

#include "features.hpp"

namespace vqlab {

struct MlpOptions {
  int64_t hidden = 256;
  double dropout = 0.3;
  double learning_rate = 1e-3;  // Adam, cosine schedule
  int64_t batch_size = 128;     // or all rows, if there are fewer
  int64_t epochs = 10, least_steps = 1000;
};

// Trains on rows of features, which are standardised, and returns the class of each query. labels
// (training.rows), all
// >= 0. The same result for the same seed.
std::vector<int32_t> recognise_with_mlp(const Runtime& runtime, const FeatureMatrix& training,
                                        const std::vector<int32_t>& labels, const FeatureMatrix& queries,
                                        int64_t classes, const MlpOptions& options, uint64_t seed);

}  // namespace vqlab
