// What of an image the heads see. Each feature is a function of the image alone: no labels, no other images.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/trained_model.hpp"

namespace vqlab {

// Features of images, on the host.
struct FeatureMatrix {
  int64_t rows = 0, dims = 0;
  std::vector<float> values;  // (rows, dims)

  const float* row(int64_t i) const { return values.data() + i * dims; }
};

// What a feature needs of the model.
enum class FeatureSource { pixels, encoder, codes, decoder };

struct FeatureEntry {
  std::string_view name, idea;  // one line
  FeatureSource source;
};

// pixels, hog, z_e, z_q, onehot, histogram, pyramid, enc_h, dec_h.
std::span<const FeatureEntry> feature_table();
// Throws Error(usage) with the nearest valid name.
const FeatureEntry& find_feature(const std::string& name);

// Throws Error(usage) for an unknown name or a feature that the model does not have.
void require_feature(const TrainedModel& trained, const std::string& name);

// One matrix for each name, in one pass over the images, rows in the order of the range. Throws as
// require_feature(), Error(failed) if a value is not finite, Error(resources) if the memory does not suffice.
std::vector<FeatureMatrix> extract_features(TrainedModel& trained, const ImageRange& range,
                                            const std::vector<std::string>& names);

// Histograms of oriented gradients (Dalal and Triggs 2005): cells of 4 x 4 pixels, 9 orientations without
// sign, blocks of 2 x 2 cells in steps of one cell, each of length 1 after clipping at 0.2. Of a colour image
// the channel with the steepest gradient counts. What does not fill a cell is left out.
int64_t hog_dims(int64_t height, int64_t width);
void hog(const uint8_t* image, int64_t height, int64_t width, int64_t channels, float* features);

}  // namespace vqlab
