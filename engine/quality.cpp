#include "quality.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace vqlab {
namespace {

constexpr int64_t kWindow = 11;

std::array<double, kWindow> gaussian() {
  std::array<double, kWindow> weights{};
  double sum = 0.0;
  for (int64_t i = 0; i < kWindow; ++i) {
    const double x = double(i - kWindow / 2) / 1.5;
    sum += weights[size_t(i)] = std::exp(-0.5 * x * x);
  }
  for (double& w : weights) w /= sum;
  return weights;
}

// Local moments at every window position, by a separable filter: rows first, then columns.
class Moments {
 public:
  Moments(int64_t height, int64_t width)
      : height_(height), width_(width), out_width_(width - kWindow + 1), rows_(size_t(height * out_width_)) {}

  template <class Pixel>
  void filter(const Pixel& pixel, std::vector<double>& out) {
    static const std::array<double, kWindow> g = gaussian();
    for (int64_t y = 0; y < height_; ++y)
      for (int64_t x = 0; x < out_width_; ++x) {
        double sum = 0.0;
        for (int64_t i = 0; i < kWindow; ++i) sum += g[size_t(i)] * pixel(y, x + i);
        rows_[size_t(y * out_width_ + x)] = sum;
      }
    const int64_t out_height = height_ - kWindow + 1;
    out.assign(size_t(out_height * out_width_), 0.0);
    for (int64_t y = 0; y < out_height; ++y)
      for (int64_t i = 0; i < kWindow; ++i)
        for (int64_t x = 0; x < out_width_; ++x)
          out[size_t(y * out_width_ + x)] += g[size_t(i)] * rows_[size_t((y + i) * out_width_ + x)];
  }

 private:
  int64_t height_, width_, out_width_;
  std::vector<double> rows_;
};

}  // namespace

double psnr_db(double mse) { return -10.0 * std::log10(mse); }

double ssim(const View<const float>& a, const View<const float>& b, int64_t height, int64_t width) {
  if (height < kWindow || width < kWindow) return std::numeric_limits<double>::quiet_NaN();
  constexpr double kC1 = 0.01 * 0.01, kC2 = 0.03 * 0.03;
  const int64_t channels = a[2];
  Moments moments(height, width);
  std::vector<double> mean_a, mean_b, aa, bb, ab;
  double sum = 0.0;
  for (int64_t c = 0; c < channels; ++c) {
    // Network values are pixels minus 0.5.
    const auto at = [&](const View<const float>& v, int64_t y, int64_t x) {
      return double(v.data[(y * v[1] + x) * channels + c]) + 0.5;
    };
    moments.filter([&](int64_t y, int64_t x) { return at(a, y, x); }, mean_a);
    moments.filter([&](int64_t y, int64_t x) { return at(b, y, x); }, mean_b);
    moments.filter([&](int64_t y, int64_t x) { return at(a, y, x) * at(a, y, x); }, aa);
    moments.filter([&](int64_t y, int64_t x) { return at(b, y, x) * at(b, y, x); }, bb);
    moments.filter([&](int64_t y, int64_t x) { return at(a, y, x) * at(b, y, x); }, ab);
    for (size_t i = 0; i < ab.size(); ++i) {
      const double ma = mean_a[i], mb = mean_b[i];
      const double va = aa[i] - ma * ma, vb = bb[i] - mb * mb, cov = ab[i] - ma * mb;
      sum += (2 * ma * mb + kC1) * (2 * cov + kC2) / ((ma * ma + mb * mb + kC1) * (va + vb + kC2));
    }
  }
  return sum / double(channels * int64_t(ab.size()));
}

}  // namespace vqlab
