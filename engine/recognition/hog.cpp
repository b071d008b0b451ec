#include <algorithm>
#include <cmath>
#include <numbers>

#include "features.hpp"

namespace vqlab {
namespace {

constexpr int64_t kCell = 4, kBins = 9, kBlock = 2;
constexpr float kClip = 0.2f, kNormEpsilon = 1e-5f;

struct Gradient {
  float magnitude, angle;  // angle in [0, pi], both ends the same orientation
};

// By central differences, 0 beyond the edges' own; of the channel where it is steepest.
Gradient gradient_at(const uint8_t* image, int64_t height, int64_t width, int64_t channels, int64_t y,
                     int64_t x) {
  Gradient steepest{-1.0f, 0.0f};
  const auto at = [&](int64_t row, int64_t column, int64_t c) {
    return float(image[(row * width + column) * channels + c]) / 255.0f;
  };
  for (int64_t c = 0; c < channels; ++c) {
    const float dy = y > 0 && y + 1 < height ? at(y + 1, x, c) - at(y - 1, x, c) : 0.0f;
    const float dx = x > 0 && x + 1 < width ? at(y, x + 1, c) - at(y, x - 1, c) : 0.0f;
    const float magnitude = std::sqrt(dx * dx + dy * dy);
    if (magnitude <= steepest.magnitude) continue;
    float angle = std::atan2(dy, dx);
    if (angle < 0.0f) angle += std::numbers::pi_v<float>;
    steepest = {magnitude, angle};
  }
  return steepest;
}

void normalise_block(float* block, int64_t size) {
  const auto scale = [&] {
    float sum = 0.0f;
    for (int64_t i = 0; i < size; ++i) sum += block[i] * block[i];
    const float factor = 1.0f / std::sqrt(sum + kNormEpsilon * kNormEpsilon);
    for (int64_t i = 0; i < size; ++i) block[i] *= factor;
  };
  scale();
  for (int64_t i = 0; i < size; ++i) block[i] = std::min(block[i], kClip);
  scale();
}

}  // namespace

int64_t hog_dims(int64_t height, int64_t width) {
  const int64_t rows = height / kCell - kBlock + 1, columns = width / kCell - kBlock + 1;
  return rows < 1 || columns < 1 ? 0 : rows * columns * kBlock * kBlock * kBins;
}

void hog(const uint8_t* image, int64_t height, int64_t width, int64_t channels, float* features) {
  const int64_t rows = height / kCell, columns = width / kCell;
  std::vector<float> cells(size_t(rows * columns * kBins), 0.0f);
  for (int64_t y = 0; y < rows * kCell; ++y)
    for (int64_t x = 0; x < columns * kCell; ++x) {
      const Gradient g = gradient_at(image, height, width, channels, y, x);
      const int64_t bin = int64_t(g.angle / std::numbers::pi_v<float> * float(kBins)) % kBins;
      cells[size_t((y / kCell * columns + x / kCell) * kBins + bin)] += g.magnitude;
    }
  for (int64_t r = 0; r + kBlock <= rows; ++r)
    for (int64_t c = 0; c + kBlock <= columns; ++c) {
      float* block = features;
      for (int64_t i = 0; i < kBlock; ++i, features += kBlock * kBins)
        std::copy_n(cells.data() + ((r + i) * columns + c) * kBins, kBlock * kBins, features);
      normalise_block(block, kBlock * kBlock * kBins);
    }
}

}  // namespace vqlab
