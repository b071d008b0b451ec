#include "charts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace vqlab {
namespace {

// Okabe and Ito, "Color universal design" (2008), without yellow, which white paper swallows.
constexpr std::array<const char*, 7> kColours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                 "#E69F00", "#56B4E9", "#000000"};
constexpr std::array<const char*, 4> kDashes = {"", "6 3", "2 3", "8 3 2 3"};
constexpr double kPlotWidth = 600.0, kHeight = 420.0;
constexpr double kLeft = 84.0, kTop = 20.0, kBottom = 56.0;
constexpr double kLegendMark = 34.0, kBarRow = 26.0, kValueWidth = 100.0;
constexpr double kLeastNames = 80.0, kMostNames = 380.0;  // widths of names; longer ones are cut
constexpr double kLetter = 7.0;                           // width of a letter of 12 px, about

std::string colour(size_t i) { return kColours[i % kColours.size()]; }
std::string dash(size_t i) { return kDashes[i / kColours.size() % kDashes.size()]; }

// Where values lie on the page, and the ticks between.
class Ruler {
 public:
  Ruler(const ChartAxis& axis, double low, double high, double from, double to, int wanted_ticks)
      : log_(axis.scale == Scale::logarithmic), from_(from), to_(to) {
    if (!(low <= high)) low = log_ ? 1.0 : 0.0, high = 10.0;
    if (log_) {
      fit_logarithmic(low, high);
    } else {
      fit_linear(low, high, wanted_ticks);
    }
  }
  double place(double value) const {
    const double v = log_ ? std::log10(value) : value;
    return from_ + (to_ - from_) * (v - low_) / (high_ - low_);
  }
  bool shows(double value) const { return std::isfinite(value) && (!log_ || value > 0.0); }
  const std::vector<double>& ticks() const { return ticks_; }

 private:
  void fit_linear(double low, double high, int wanted) {
    if (high - low <= 1e-12 * std::max(std::abs(low), std::abs(high))) {  // one value
      const double margin = low == 0.0 ? 1.0 : 0.1 * std::abs(low);
      low -= margin, high += margin;
    }
    const double rough = (high - low) / wanted, power = std::pow(10.0, std::floor(std::log10(rough)));
    const double ratio = rough / power, step = power * (ratio > 5.0   ? 10.0
                                                        : ratio > 2.0 ? 5.0
                                                        : ratio > 1.0 ? 2.0
                                                                      : 1.0);
    const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
    low_ = first * step, high_ = last * step;
    for (double i = first; i <= last; i += 1.0) ticks_.push_back(i * step);
  }
  void fit_logarithmic(double low, double high) {
    low_ = std::log10(low), high_ = std::log10(high);
    const double margin = std::max(0.05 * (high_ - low_), 0.02);
    low_ -= margin, high_ += margin;
    const bool narrow = high_ - low_ < 2.5;
    for (int decade = int(std::floor(low_)); decade <= int(std::ceil(high_)); ++decade)
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double tick = factor * std::pow(10.0, decade), place = std::log10(tick);
        if ((factor == 1.0 || narrow) && place >= low_ && place <= high_) ticks_.push_back(tick);
      }
    if (ticks_.size() < 2) ticks_ = {std::pow(10.0, low_ + margin), std::pow(10.0, high_ - margin)};
  }

  bool log_;
  double low_ = 0.0, high_ = 1.0, from_, to_;
  std::vector<double> ticks_;
};

std::string number_text(double value) {
  if (std::abs(value) < 1e-12) return "0";
  return std::abs(value) >= 1e6 || std::abs(value) < 1e-4 ? fmt::format("{:.2g}", value)
                                                          : fmt::format("{:.4g}", value);
}

std::string line(double x1, double y1, double x2, double y2, const std::string& style) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1, y1, x2, y2,
                     style);
}

std::string text(double x, double y, const std::string& anchor, const std::string& words,
                 const std::string& more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor,
                     more.empty() ? "" : " " + more, escape_html(words));
}

// Four shapes, so that series differ without colour too.
std::string marker(size_t i, double x, double y) {
  const std::string fill = fmt::format("fill=\"{}\"", colour(i));
  switch (i % 4) {
    case 0:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\" {}/>\n", x, y, fill);
    case 1:
      return fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"8\" height=\"8\" {}/>\n", x - 4, y - 4,
                         fill);
    case 2:
      return fmt::format("<path d=\"M{:.1f} {:.1f}l5 9h-10z\" {}/>\n", x, y - 5, fill);
    default:
      return fmt::format("<path d=\"M{:.1f} {:.1f}l5 5l-5 5l-5 -5z\" {}/>\n", x, y - 5, fill);
  }
}

std::string open_svg(double width, double height, const std::string& title, const std::string& description) {
  return fmt::format(
      "<svg viewBox=\"0 0 {:.0f} {:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" role=\"img\" aria-label=\"{}\" "
      "font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>{}</title>\n<desc>{}</desc>\n",
      width, height, width, height, escape_html(title + ". " + description), escape_html(title),
      escape_html(description));
}

std::string clipped(const std::string& words, double width) {
  const size_t most = size_t(std::max(4.0, width / kLetter));
  if (words.size() <= most) return words;
  size_t end = most - 2;
  while (end > 0 && (static_cast<unsigned char>(words[end]) & 0xC0) == 0x80) --end;  // whole UTF-8 characters
  return words.substr(0, end) + "..";
}

// The width that the longest of the names takes.
template <class Named>
double width_of_names(const std::vector<Named>& named, double least) {
  size_t longest = 0;
  for (const Named& one : named) longest = std::max(longest, one.name.size());
  return std::clamp(kLetter * double(longest + 1), least, kMostNames);
}

struct Extent {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void add(double value, Scale scale) {
    if (!std::isfinite(value) || (scale == Scale::logarithmic && value <= 0.0)) return;
    low = std::min(low, value), high = std::max(high, value);
  }
};

// Frame, grid, numbers and titles of both axes.
std::string draw_axes(const XyChart& chart, const Ruler& x, const Ruler& y, double right) {
  std::string svg;
  const double bottom = kHeight - kBottom;
  for (const double tick : x.ticks()) {
    svg += line(x.place(tick), kTop, x.place(tick), bottom, "stroke=\"#ddd\"");
    svg += text(x.place(tick), bottom + 18, "middle", number_text(tick));
  }
  for (const double tick : y.ticks()) {
    svg += line(kLeft, y.place(tick), right, y.place(tick), "stroke=\"#ddd\"");
    svg += text(kLeft - 8, y.place(tick) + 4, "end", number_text(tick));
  }
  svg += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"none\" "
      "stroke=\"#444\"/>\n",
      kLeft, kTop, right - kLeft, bottom - kTop);
  svg += text((kLeft + right) / 2, kHeight - 14, "middle", chart.x.title);
  const double middle = (kTop + bottom) / 2;
  svg +=
      text(18, middle, "middle", chart.y.title, fmt::format("transform=\"rotate(-90 18 {:.1f})\"", middle));
  return svg;
}

std::string draw_series(const ChartSeries& series, size_t index, const Ruler& x, const Ruler& y) {
  std::string path, marks;
  for (const ChartPoint& point : series.points) {
    if (!x.shows(point.x) || !y.shows(point.y)) continue;
    const double px = x.place(point.x), py = y.place(point.y);
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px, py);
    if (y.shows(point.low) && y.shows(point.high) && point.high > point.low) {
      const std::string style = fmt::format("stroke=\"{}\"", colour(index));
      marks += line(px, y.place(point.low), px, y.place(point.high), style);
      for (const double end : {point.low, point.high})
        marks += line(px - 4, y.place(end), px + 4, y.place(end), style);
    }
    marks += marker(index, px, py);
    const bool flip = px + kLetter * double(point.label.size()) > kLeft + kPlotWidth;  // stays inside
    if (!point.label.empty())
      marks += text(flip ? px - 8 : px + 8, py - 6, flip ? "end" : "start", point.label,
                    "font-size=\"11\" fill=\"#333\"");
  }
  if (!series.line || path.empty()) return marks;
  const std::string dashes = dash(index).empty() ? "" : fmt::format(" stroke-dasharray=\"{}\"", dash(index));
  return fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"{}/>\n", path,
                     colour(index), dashes) +
         marks;
}

// The part of a limit that both axes show.
std::string draw_limit(const ChartLimit& limit, const Ruler& x, const Ruler& y, const std::string& style) {
  std::string path;
  for (const auto& [at, value] : limit.points)
    if (x.shows(at) && y.shows(value))
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x.place(at), y.place(value));
  return path.empty() ? "" : fmt::format("<path d=\"{}\" fill=\"none\" {}/>\n", path, style);
}

// Of the lines that are no series.
std::string level_style(size_t i) {
  return fmt::format("stroke=\"#444\" stroke-width=\"1.4\" stroke-dasharray=\"{}\"",
                     kDashes[1 + i % (kDashes.size() - 1)]);
}

double place_or_zero(const Ruler& ruler, double value) {
  return ruler.shows(value) ? ruler.place(value) : 0.0;
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 && c != '\n' ? ' ' : c;
    }
  }
  return escaped;
}

std::string draw(const XyChart& chart) {
  Extent across, up;
  size_t shown = 0;
  for (const ChartSeries& series : chart.series)
    for (const ChartPoint& point : series.points) {
      Extent own_x, own_y;
      own_x.add(point.x, chart.x.scale), own_y.add(point.y, chart.y.scale);
      if (own_x.low > own_x.high || own_y.low > own_y.high) continue;
      ++shown;
      across.add(point.x, chart.x.scale);
      for (const double y : {point.y, point.low, point.high}) up.add(y, chart.y.scale);
    }
  for (const ChartLevel& level : chart.levels) up.add(level.y, chart.y.scale);
  for (const ChartLimit& limit : chart.limits)
    for (const auto& [at, value] : limit.points) across.add(at, chart.x.scale), up.add(value, chart.y.scale);
  const double names = width_of_names(
                   chart.limits, width_of_names(chart.levels, width_of_names(chart.series, kLeastNames))),
               right = kLeft + kPlotWidth, width = right + kLegendMark + names, bottom = kHeight - kBottom;
  const Ruler x(chart.x, across.low, across.high, kLeft, right, 6),
      y(chart.y, up.low, up.high, bottom, kTop, 6);
  std::string svg = open_svg(width, kHeight, chart.title, chart.description) + draw_axes(chart, x, y, right);
  double legend = kTop + 12;
  const auto name = [&](const std::string& words) {
    svg += text(right + kLegendMark, legend + 4, "start", clipped(words, names));
    legend += 20;
  };
  for (size_t i = 0; i < chart.series.size(); ++i) {
    svg += draw_series(chart.series[i], i, x, y);
    svg += marker(i, right + 20, legend);
    name(chart.series[i].name);
  }
  for (size_t i = 0; i < chart.levels.size(); ++i) {
    if (!y.shows(chart.levels[i].y)) continue;
    const std::string style = level_style(i);
    svg +=
        line(kLeft, place_or_zero(y, chart.levels[i].y), right, place_or_zero(y, chart.levels[i].y), style);
    svg += line(right + 8, legend, right + 30, legend, style);
    name(chart.levels[i].name);
  }
  for (size_t i = 0; i < chart.limits.size(); ++i) {
    const std::string style = level_style(chart.levels.size() + i);
    svg += draw_limit(chart.limits[i], x, y, style);
    svg += line(right + 8, legend, right + 30, legend, style);
    name(chart.limits[i].name);
  }
  if (shown == 0) svg += text((kLeft + right) / 2, kHeight / 2, "middle", "nothing was measured");
  return svg + "</svg>\n";
}

std::string draw(const BarChart& chart) {
  const bool dots = chart.style == BarStyle::dots;
  Extent extent;
  if (!dots) extent.add(0.0, chart.value.scale);
  for (const ChartBar& bar : chart.bars)
    if (std::isfinite(bar.value))
      for (const double value : {bar.value, bar.low, bar.high}) extent.add(value, chart.value.scale);
  const double height = kTop + kBarRow * double(chart.bars.size()) + kBottom, bottom = height - kBottom,
               left = 12.0 + width_of_names(chart.bars, kLeastNames), right = left + kPlotWidth * 0.8;
  const Ruler ruler(chart.value, extent.low, extent.high, left, right, 6);
  std::string svg = open_svg(right + kValueWidth, height, chart.title, chart.description);
  for (const double tick : ruler.ticks()) {
    svg += line(ruler.place(tick), kTop, ruler.place(tick), bottom, "stroke=\"#ddd\"");
    svg += text(ruler.place(tick), bottom + 18, "middle", number_text(tick));
  }
  const double start = dots ? left : place_or_zero(ruler, 0.0);
  double y = kTop + kBarRow / 2;
  for (const ChartBar& bar : chart.bars) {
    svg += text(left - 8, y + 4, "end", clipped(bar.name, left - 12.0));
    const bool measured = ruler.shows(bar.value);
    svg += text(right + 10, y + 4, "start", measured || !bar.text.empty() ? bar.text : "-");
    if (measured && dots) svg += marker(0, ruler.place(bar.value), y);
    if (measured && !dots) {
      const double end = ruler.place(bar.value);
      svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n",
                         std::min(start, end), y - 8, std::abs(end - start), 16.0, colour(5));
    }
    if (measured && ruler.shows(bar.low) && ruler.shows(bar.high) && bar.high > bar.low) {
      const double low = ruler.place(bar.low), high = ruler.place(bar.high);
      svg += line(low, y, high, y, "stroke=\"#000\" stroke-width=\"1.4\"");
      for (const double end : {low, high})
        svg += line(end, y - 5, end, y + 5, "stroke=\"#000\" stroke-width=\"1.4\"");
    }
    y += kBarRow;
  }
  svg += line(left, kTop, left, bottom, "stroke=\"#444\"");
  svg += text((left + right) / 2, height - 14, "middle", chart.value.title);
  return svg + "</svg>\n";
}

}  // namespace vqlab
