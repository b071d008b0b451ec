// Encoding and decoding of many images with a trained model.
#pragma once

#include <functional>
#include <vector>

#include "trained_model.hpp"

namespace vqlab {

// The codes of all images of the range, (count, h, w). Throws as require_codes does.
std::vector<int32_t> encode_images(TrainedModel& trained, const ImageRange& range);

// Called with the place of an image and its reconstruction (H, W, C), sides still padded, pixels minus 0.5.
using ImageVisitor = std::function<void(int64_t index, const View<const float>& image)>;

// Decodes `count` images from codes (count, h, w). Throws Error(data) naming a code that is not in [0,
// codebook_size).
void decode_codes(TrainedModel& trained, const std::vector<int32_t>& codes, int64_t count,
                  const ImageVisitor& visit);

}  // namespace vqlab
