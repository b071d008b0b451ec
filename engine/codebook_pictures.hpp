// Pictures of a trained codebook: what each code looks like, and how often it is taken.
#pragma once

#include <string>
#include <vector>

#include "inference.hpp"

namespace vqlab {

// At most so many codes are drawn one by one, the most used ones.
inline constexpr int64_t kMostDrawnCodes = 1024;

// How often each code occurs, and the codes by that: the most used first, equal ones by their number.
struct CodebookUse {
  std::vector<int64_t> counts;
  std::vector<int32_t> by_use;
  int64_t total = 0;
};
CodebookUse count_codes(const std::vector<int32_t>& codes, int64_t codebook_size);

// A PNG of the pictures that the decoder makes of a latent map of one code alone, row by row in order of use.
// Throws as TrainedModel::require_codes and write_png do.
void write_code_pictures(const std::string& path, TrainedModel& trained, const CodebookUse& use);

// An RGB image (height, width, 3) of a bar for each code in order of use: its share of the latents, with
// labelled axes and a line at the share of equally used codes. Many codes share a bar, which has their mean.
struct Chart {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;
};
Chart draw_use(const CodebookUse& use);
void write_use_chart(const std::string& path, const CodebookUse& use, const std::string& config);

}  // namespace vqlab
