#include "codebook_pictures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "io/png.hpp"
#include "pictures.hpp"

namespace vqlab {
namespace {

constexpr int64_t kGridSide = 2048;  // pixels of a picture grid, about

using Colour = std::array<uint8_t, 3>;
constexpr Colour kBlack = {0, 0, 0}, kBar = {31, 119, 180}, kLine = {214, 39, 40};

// Characters of 3 x 5 pixels, rows from the top, the left pixel in the highest bit.
struct Glyph {
  char character;
  uint16_t rows;
};
constexpr Glyph kGlyphs[] = {
    {'0', 0b111'101'101'101'111}, {'1', 0b010'110'010'010'111}, {'2', 0b111'001'111'100'111},
    {'3', 0b111'001'111'001'111}, {'4', 0b101'101'111'001'001}, {'5', 0b111'100'111'001'111},
    {'6', 0b111'100'111'101'111}, {'7', 0b111'001'010'010'010}, {'8', 0b111'101'111'101'111},
    {'9', 0b111'101'111'001'111}, {'.', 0b000'000'000'000'010}, {'%', 0b101'001'010'100'101}};
constexpr int64_t kGlyphScale = 2, kGlyphWidth = 4 * kGlyphScale, kGlyphHeight = 5 * kGlyphScale;

// Bars stand on the row before `bottom`, between `left` and `right`.
constexpr int64_t kPlotHeight = 256, kPlotWidth = 1024, kTop = 12, kLeft = 56, kRight = 28, kBelow = 24,
                  kTick = 4;
constexpr int64_t kBottom = kTop + kPlotHeight;

class Canvas {
 public:
  Canvas(int64_t height, int64_t width)
      : chart_{height, width, std::vector<uint8_t>(size_t(height * width * 3), 255)} {}
  void fill(int64_t y, int64_t x, int64_t height, int64_t width, const Colour& colour) {
    for (int64_t row = std::max<int64_t>(y, 0); row < std::min(y + height, chart_.height); ++row)
      for (int64_t column = std::max<int64_t>(x, 0); column < std::min(x + width, chart_.width); ++column)
        std::copy(colour.begin(), colour.end(), chart_.pixels.begin() + (row * chart_.width + column) * 3);
  }
  // Text whose top right corner is (y, x).
  void write(int64_t y, int64_t x, const std::string& text) {
    x -= int64_t(text.size()) * kGlyphWidth - kGlyphScale;
    for (const char character : text) {
      const auto* const glyph = std::ranges::find(kGlyphs, character, &Glyph::character);
      for (int bit = 0; bit < 15; ++bit)
        if (glyph != std::end(kGlyphs) && (glyph->rows >> (14 - bit) & 1) != 0)
          fill(y + bit / 3 * kGlyphScale, x + bit % 3 * kGlyphScale, kGlyphScale, kGlyphScale, kBlack);
      x += kGlyphWidth;
    }
  }
  Chart take() { return std::move(chart_); }

 private:
  Chart chart_;
};

// The next of 1, 2, 5, 10, 20, ... (and their decimal parts) at or above x > 0.
double round_step(double x) {
  const double decade = std::pow(10.0, std::floor(std::log10(x)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (x <= factor * decade * (1.0 + 1e-9)) return factor * decade;
  return 10.0 * decade;
}

// The share of a bar `percent` high, on an axis that ends at a whole number of steps.
void draw_shares(Canvas& canvas, double step, double top) {
  const int digits = std::max(0, int(-std::floor(std::log10(step) + 1e-9)));
  for (int i = 0; i * step <= top * (1.0 + 1e-9); ++i) {
    const int64_t y = kBottom - std::llround(i * step / top * double(kPlotHeight));
    canvas.fill(y, kLeft - kTick, 1, kTick, kBlack);
    canvas.write(y - kGlyphHeight / 2, kLeft - 2 * kTick, fmt::format("{:.{}f}%", i * step, digits));
  }
}

void draw_ranks(Canvas& canvas, int64_t K, double bar_width) {
  const auto step = std::max<int64_t>(1, std::llround(round_step(double(K) / 8.0)));
  for (int64_t rank = 0; rank <= K; rank += step) {
    const int64_t x = kLeft + std::llround(double(rank) * bar_width);
    const std::string text = std::to_string(rank);
    canvas.fill(kBottom + 1, x, kTick, 1, kBlack);
    canvas.write(kBottom + 2 + kTick, x + int64_t(text.size()) * kGlyphWidth / 2, text);
  }
}

}  // namespace

CodebookUse count_codes(const std::vector<int32_t>& codes, int64_t codebook_size) {
  CodebookUse use{.counts = std::vector<int64_t>(size_t(codebook_size), 0),
                  .by_use = std::vector<int32_t>(size_t(codebook_size), 0),
                  .total = int64_t(codes.size())};
  for (const int32_t code : codes) ++use.counts[size_t(code)];
  std::iota(use.by_use.begin(), use.by_use.end(), 0);
  std::ranges::stable_sort(use.by_use, std::ranges::greater{},
                           [&](int32_t code) { return use.counts[size_t(code)]; });
  return use;
}

void write_code_pictures(const std::string& path, TrainedModel& trained, const CodebookUse& use) {
  trained.require_codes("pictures of codes");
  const auto& [height, width, channels] = trained.model().shape();
  const int64_t count = std::min(int64_t(use.by_use.size()), kMostDrawnCodes);
  const auto columns = int64_t(std::ceil(std::sqrt(double(count))));
  const int64_t per_image = trained.model().code_height() * trained.model().code_width();
  std::vector<int32_t> codes;
  for (int64_t i = 0; i < count; ++i) codes.insert(codes.end(), size_t(per_image), use.by_use[size_t(i)]);
  PictureGrid grid((count + columns - 1) / columns, columns, height, width, kGridSide / columns);
  decode_codes(trained, codes, count,
               [&, height = height, width = width, channels = channels](int64_t index,
                                                                        const View<const float>& image) {
                 grid.paste(index / columns, index % columns, to_bytes(image, height, width), channels);
               });
  write_png(path, grid.view(), {{"Software", "vqlab"}, {"vqlab config", to_toml(trained.config())}});
}

Chart draw_use(const CodebookUse& use) {
  const auto K = int64_t(use.by_use.size());
  const int64_t bars = std::min(K, kPlotWidth);
  const double bar_width = double(kPlotWidth) / double(K), total = double(std::max<int64_t>(use.total, 1));
  std::vector<double> percent(size_t(bars), 0.0);
  for (int64_t bar = 0; bar < bars; ++bar) {
    const int64_t first = bar * K / bars, end = (bar + 1) * K / bars;
    for (int64_t rank = first; rank < end; ++rank)
      percent[size_t(bar)] += double(use.counts[size_t(use.by_use[size_t(rank)])]);
    percent[size_t(bar)] *= 100.0 / (total * double(end - first));
  }
  const double even = 100.0 / double(K), step = round_step(std::max(percent[0], even) / 5.0);
  const double top = step * std::ceil(std::max(percent[0], even) / step - 1e-9);
  Canvas canvas(kBottom + kBelow, kLeft + kPlotWidth + kRight);
  for (int64_t bar = 0; bar < bars; ++bar) {
    const int64_t x = kLeft + bar * kPlotWidth / bars, next = kLeft + (bar + 1) * kPlotWidth / bars;
    const int64_t height = std::llround(percent[size_t(bar)] / top * double(kPlotHeight));
    canvas.fill(kBottom - height, x, height, std::max<int64_t>(next - x - (next - x > 2), 1), kBar);
  }
  canvas.fill(kBottom - std::llround(even / top * double(kPlotHeight)), kLeft, 1, kPlotWidth, kLine);
  canvas.fill(kTop, kLeft - 1, kPlotHeight + 1, 1, kBlack);
  canvas.fill(kBottom, kLeft - 1, 1, kPlotWidth + 1, kBlack);
  draw_shares(canvas, step, top);
  draw_ranks(canvas, K, bar_width);
  return canvas.take();
}

void write_use_chart(const std::string& path, const CodebookUse& use, const std::string& config) {
  const Chart chart = draw_use(use);
  write_png(path, {chart.pixels.data(), {chart.height, chart.width, 3}},
            {{"Software", "vqlab"}, {"vqlab config", config}});
}

}  // namespace vqlab
