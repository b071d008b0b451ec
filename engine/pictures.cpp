#include "pictures.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "io/png.hpp"

namespace vqlab {
namespace {

constexpr int64_t kGap = 2;  // pixels between the images of a grid

std::array<uint8_t, 3> code_colour(int32_t code) {
  // Steps of the golden ratio spread consecutive codes over the colour circle.
  const double hue = std::fmod(0.618033988749895 * double(code), 1.0) * 6.0;
  const double value = 0.95 - 0.15 * double(code % 3), saturation = 0.45 + 0.2 * double(code / 3 % 3);
  std::array<uint8_t, 3> rgb{};
  for (size_t c = 0; c < 3; ++c) {
    const double k = std::fmod(5.0 - 2.0 * double(c) + hue, 6.0);
    rgb[c] = uint8_t(255.0 * (value - value * saturation * std::max(0.0, std::min({k, 4.0 - k, 1.0}))));
  }
  return rgb;
}

}  // namespace

PictureGrid::PictureGrid(int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t smallest_side)
    : scale_(std::max<int64_t>(1, smallest_side / std::max(height, width))),
      height_(height * scale_),
      width_(width * scale_),
      total_height_(rows * (height_ + kGap) - kGap),
      total_width_(columns * (width_ + kGap) - kGap),
      pixels_(size_t(total_height_ * total_width_ * 3), 255) {}

void PictureGrid::paste(int64_t row, int64_t column, const std::vector<uint8_t>& image, int64_t channels) {
  for (int64_t y = 0; y < height_; ++y)
    for (int64_t x = 0; x < width_; ++x) {
      const int64_t from = (y / scale_ * (width_ / scale_) + x / scale_) * channels;
      const int64_t to = ((row * (height_ + kGap) + y) * total_width_ + column * (width_ + kGap) + x) * 3;
      for (int64_t c = 0; c < 3; ++c)
        pixels_[size_t(to + c)] = image[size_t(from + std::min(c, channels - 1))];
    }
}

std::vector<uint8_t> to_bytes(const View<const float>& image, int64_t height, int64_t width) {
  std::vector<uint8_t> bytes(size_t(height * width * image[2]));
  for (int64_t y = 0; y < height; ++y)
    for (int64_t i = 0; i < width * image[2]; ++i) {
      const float value = image.data[y * image[1] * image[2] + i] + 0.5f;
      bytes[size_t(y * width * image[2] + i)] = uint8_t(std::lround(255.0f * std::clamp(value, 0.0f, 1.0f)));
    }
  return bytes;
}

std::vector<uint8_t> code_map(const View<const int32_t>& codes, int64_t downsampling, int64_t height,
                              int64_t width) {
  std::vector<uint8_t> pixels(size_t(height * width * 3));
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const auto rgb = code_colour(codes.data[y / downsampling * codes[1] + x / downsampling]);
      std::copy(rgb.begin(), rgb.end(), pixels.begin() + (y * width + x) * 3);
    }
  return pixels;
}

BatchPictures::BatchPictures(const Model& model, const Runtime& runtime)
    : model_(model),
      input_(images_to_host(model.input(), model.shape().channels, runtime)),
      reconstruction_(images_to_host(model.reconstruction(), model.shape().channels, runtime)) {
  const Quantizer& quantizer = model.quantizer();
  if (quantizer.codebook_size() > 0 && quantizer.initialised()) codes_ = to_host(quantizer.codes(), runtime);
}

std::vector<uint8_t> BatchPictures::bytes(const HostImages& images, int64_t i) const {
  return to_bytes(images.image(i), model_.shape().height, model_.shape().width);
}

std::vector<uint8_t> BatchPictures::codes(int64_t i) const {
  const int64_t h = model_.code_height(), w = model_.code_width();
  return code_map({codes_.data() + i * h * w, {h, w}}, model_.config().model.downsampling,
                  model_.shape().height, model_.shape().width);
}

void write_grid(const std::string& path, const Model& model, const Runtime& runtime, int64_t count) {
  const BatchPictures pictures(model, runtime);
  const auto& [height, width, channels] = model.shape();
  count = std::min(count, model.batch());
  PictureGrid grid(pictures.has_codes() ? 3 : 2, count, height, width);
  for (int64_t i = 0; i < count; ++i) {
    grid.paste(0, i, pictures.original(i), channels);
    grid.paste(1, i, pictures.reconstruction(i), channels);
    if (pictures.has_codes()) grid.paste(2, i, pictures.codes(i), 3);
  }
  write_png(path, grid.view(), {{"Software", "vqlab"}, {"vqlab config", to_toml(model.config())}});
}

}  // namespace vqlab
