// PNG pictures, written and read by libpng.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/view.hpp"

namespace vqlab {

// Text chunks: keyword (1 to 79 bytes of Latin-1) and text (UTF-8; compressed when long).
using PngText = std::map<std::string, std::string>;

// The bytes of a PNG file of an image (H, W, C), C 1 (grey) or 3 (RGB), 8 bits a channel. Equal input gives
// equal bytes. Throws Error(failed) on another shape, Error(resources) when memory is short.
std::string encode_png(const View<const uint8_t>& image, const PngText& text = {});

// Writes such a file. Throws as encode_png and write_file do.
void write_png(const std::string& path, const View<const uint8_t>& image, const PngText& text = {});

// The pixels of a PNG file, (height, width, channels), 8 bits a channel, converted to grey (channels 1) or
// RGB (3); what is transparent shows black. Throws Error(data) if the file is missing, damaged or larger than
// kMaxImageSide.
struct PngImage {
  int64_t height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;
};
PngImage read_png(const std::string& path, int64_t channels);

}  // namespace vqlab
