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

// The pictures of the batch that a model has just computed, copied to the host.
class BatchPictures {
 public:
  BatchPictures(const Model& model, const Runtime& runtime);

  // Bytes of image i, (height, width, channels).
  std::vector<uint8_t> original(int64_t i) const { return bytes(input_, i); }
  std::vector<uint8_t> reconstruction(int64_t i) const { return bytes(reconstruction_, i); }
  // Its code map, RGB; only if has_codes(): not for a plain autoencoder, nor before the codebook is
  // initialised.
  std::vector<uint8_t> codes(int64_t i) const;
  bool has_codes() const { return !codes_.empty(); }

 private:
  std::vector<uint8_t> bytes(const HostImages& images, int64_t i) const;

  const Model& model_;
  HostImages input_, reconstruction_;
  std::vector<int32_t> codes_;
};

// Pictures side by side on white, RGB. Small ones are enlarged, each pixel to a square, but to no more than
// `smallest_side` pixels.
class PictureGrid {
 public:
  PictureGrid(int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t smallest_side = 96);
  // Pastes an image (height, width, channels) of 1 or 3 channels.
  void paste(int64_t row, int64_t column, const std::vector<uint8_t>& image, int64_t channels);
  View<const uint8_t> view() const { return {pixels_.data(), {total_height_, total_width_, 3}}; }

 private:
  int64_t scale_, height_, width_, total_height_, total_width_;
  std::vector<uint8_t> pixels_;
};

// A PNG of three rows (two without codes): the first `count` inputs of the model's batch, their
// reconstructions, their code maps; RGB for colour images and wherever there are codes.
void write_grid(const std::string& path, const Model& model, const Runtime& runtime, int64_t count);

}  // namespace vqlab
