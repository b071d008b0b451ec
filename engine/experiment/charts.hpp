// Static charts as SVG elements for an HTML page: no scripts, no references, readable in black and white.
#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace vqlab {

inline constexpr double kNoValue = std::numeric_limits<double>::quiet_NaN();

enum class Scale { linear, logarithmic };

struct ChartAxis {
  std::string title;  // with its unit
  Scale scale = Scale::linear;
};

// A value with its range; `low` and `high` are NaN where there is none.
struct ChartPoint {
  double x = 0.0, y = 0.0;
  double low = kNoValue, high = kNoValue;  // of y
  std::string label = "";                  // beside the point
};

struct ChartSeries {
  std::string name;
  std::vector<ChartPoint> points = {};
  bool line = true;  // joins the points in their order
};

// A horizontal line across the chart.
struct ChartLevel {
  std::string name;
  double y = 0.0;
};

// A line through these points, for limits that are not horizontal.
struct ChartLimit {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y)
};

// Points over two axes. Points that are not finite, or not positive on a logarithmic axis, are left out.
struct XyChart {
  std::string title, description;  // of the alternative text
  ChartAxis x, y;
  std::vector<ChartSeries> series = {};
  std::vector<ChartLevel> levels = {};
  std::vector<ChartLimit> limits = {};
};
std::string draw(const XyChart& chart);

struct ChartBar {
  std::string name;
  double value = kNoValue, low = kNoValue, high = kNoValue;
  std::string text = "";  // the value as the reader is to see it, or why there is none ("-" if not given)
};

// One row for each bar. Bars start at 0; where that would hide the differences, dots on a fitted axis.
enum class BarStyle { bars, dots };
struct BarChart {
  std::string title, description;
  ChartAxis value;
  BarStyle style = BarStyle::bars;
  std::vector<ChartBar> bars = {};
};
std::string draw(const BarChart& chart);

// Text for HTML and SVG, in elements and in attributes.
std::string escape_html(const std::string& text);

}  // namespace vqlab
