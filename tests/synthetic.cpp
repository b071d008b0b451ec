#include "synthetic.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>

namespace vqlab::testing {
namespace {

void put_u32(std::string& bytes, int64_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes += char(value >> shift & 0xFF);
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void write_pair(const std::string& prefix, const ImageSet& set) {
  const bool grey = set.channels == 1;
  std::string images = {0, 0, 8, char(grey ? 3 : 4)};
  for (const int64_t side : {set.count, set.height, set.width}) put_u32(images, side);
  if (!grey) put_u32(images, set.channels);
  images.append(reinterpret_cast<const char*>(set.pixels.data()), set.pixels.size());
  write_file(prefix + (grey ? "-images-idx3-ubyte" : "-images-idx4-ubyte"), images);
  std::string labels = {0, 0, 8, 1};
  put_u32(labels, set.count);
  for (const int32_t label : set.labels) labels += char(label);
  write_file(prefix + "-labels-idx1-ubyte", labels);
}

}  // namespace

ImageSet synthetic_images(int64_t count, int64_t height, int64_t width, int64_t channels, uint64_t seed) {
  ImageSet set{.count = count,
               .height = height,
               .width = width,
               .channels = channels,
               .pixels = {},
               .labels = {},
               .class_names = {}};
  const RandomKey key{.seed = seed, .step = 0, .use = RandomUse::augment, .tensor = 0};
  for (int64_t n = 0; n < count; ++n) {
    const int32_t label = int32_t(n % 10);
    set.labels.push_back(label);
    const double angle = 0.628 * label, jitter = random_uniform(key, uint64_t(n));
    const double cy = double(height) * (0.5 + 0.25 * std::sin(angle)) + jitter,
                 cx = double(width) * (0.5 + 0.25 * std::cos(angle)) - jitter;
    const double radius = double(std::min(height, width)) * (0.12 + 0.02 * label);
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        for (int64_t c = 0; c < channels; ++c) {
          const double distance = std::hypot(double(y) - cy, double(x) - cx) / radius;
          const double value = std::exp(-distance * distance) * (1.0 - 0.3 * double(c));
          set.pixels.push_back(uint8_t(255.0 * std::clamp(value, 0.0, 1.0)));
        }
  }
  return set;
}

void write_idx_set(const std::string& directory, const ImageSet& train, const ImageSet& test) {
  write_pair(directory + "/train", train);
  write_pair(directory + "/t10k", test);
}

void write_synthetic_set(const std::string& directory, int64_t train, int64_t height, int64_t width,
                         int64_t channels) {
  write_idx_set(directory, synthetic_images(train, height, width, channels, 1),
                synthetic_images(24, height, width, channels, 2));
}

std::string tiny_config(const std::string& directory, const std::string& more) {
  return "name = \"tiny\"\n"
         "[data]\npath = \"" +
         directory +
         "\"\nvalidation = 16\n"
         "[model]\nhidden = 8\nresidual_blocks = 1\nresidual_hidden = 4\n"
         "[quantizer]\ncodebook_size = 16\ndim = 4\n"
         "[train]\nepochs = 3\nbatch_size = 8\n"
         "[checkpoint]\nevery_steps = 5\n" +
         more;
}

}  // namespace vqlab::testing
