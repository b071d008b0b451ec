// Pictures for people: what went in, what came out, and the codes between.
#pragma once

#include <vector>

#include "model.hpp"

namespace vqlab {

// Bytes of an image (H, W, C) of the net's values (pixels minus 0.5), clamped to [0, 1], cropped to height x
// width.
std::vector<uint8_t> to_bytes(const View<const float>& image, int64_t height, int64_t width);

// The codes (h, w) as an RGB image of height x width: a colour for each code, far from those of its
// neighbours.
std::vector<uint8_t> code_map(const View<const int32_t>& codes, int64_t downsampling, int64_t height,
                              int64_t width);

// A PNG of three rows (two without codes): the first `count` inputs of the model's batch, their
// reconstructions, their code maps; RGB for colour images and wherever there are codes.
void write_grid(const std::string& path, const Model& model, const Runtime& runtime, int64_t count);

}  // namespace vqlab
