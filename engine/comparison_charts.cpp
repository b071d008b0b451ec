#include "comparison_charts.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "comparison_report.hpp"
#include "experiment/charts.hpp"

namespace vqlab {
namespace {

constexpr double kBarsUpTo = 30.0;  // ratio of times: beyond it the fastest would have no bar to speak of

std::string label_of(const Json& row) {
  return row.at("shape_name").is_null() ? shape_text(row) : row.at("shape_name").as_string();
}

bool timed(const Json& row) { return !row.at("ms_median").is_null(); }

ChartBar bar_of(const Json& row) {
  if (!timed(row)) return {.name = row.at("variant").as_string(), .text = row.at("status").as_string()};
  const double median = row.at("ms_median").as_number();
  return {.name = row.at("variant").as_string(),
          .value = median,
          .low = row.at("ms_q1").as_number(),
          .high = row.at("ms_q3").as_number(),
          .text = fmt::format("{:.4g} ms", median)};
}

// In the unit that gives numbers near 1.
struct SpeedUnit {
  const char* name;
  double per_tflop;
};
SpeedUnit unit_for(double most_tflop_s) {
  return most_tflop_s >= 1.0 ? SpeedUnit{"TFLOP/s", 1.0} : SpeedUnit{"GFLOP/s", 1e3};
}

// One series for each variant of each op, in the order in which they come.
std::vector<ChartSeries> roofline_series(const Json& result, const SpeedUnit& unit, bool name_ops) {
  std::vector<ChartSeries> series;
  for (const Json& row : result.at("cases").items()) {
    if (!timed(row)) continue;
    const std::string& variant = row.at("variant").as_string();
    const std::string name = name_ops ? fmt::format("{} {}", row.at("op").as_string(), variant) : variant;
    auto it = std::find_if(series.begin(), series.end(),
                           [&](const ChartSeries& other) { return other.name == name; });
    if (it == series.end()) {
      series.push_back({.name = name, .line = false});
      it = series.end() - 1;
    }
    it->points.push_back({.x = row.at("flop_per_byte").as_number(),
                          .y = row.at("tflop_s").as_number() * unit.per_tflop,
                          .label = label_of(row)});
  }
  return series;
}

// Variants at one shape lie above each other: the name of the shape stands at the fastest alone.
void label_highest(std::vector<ChartSeries>& series) {
  for (ChartSeries& one : series)
    for (ChartPoint& point : one.points)
      for (ChartSeries& other : series)
        for (ChartPoint& rival : other.points)
          if (&rival != &point && rival.x == point.x && rival.label == point.label && rival.y <= point.y)
            rival.label = "";
}

}  // namespace

std::vector<std::string> ops_of(const Json& result) {
  std::vector<std::string> ops;
  for (const Json& row : result.at("cases").items())
    if (std::find(ops.begin(), ops.end(), row.at("op").as_string()) == ops.end())
      ops.push_back(row.at("op").as_string());
  return ops;
}

std::vector<Picture> time_pictures(const Json& result, const std::string& op) {
  std::vector<std::string> shapes;
  for (const Json& row : result.at("cases").items())
    if (row.at("op").as_string() == op && timed(row) &&
        std::find(shapes.begin(), shapes.end(), shape_text(row)) == shapes.end())
      shapes.push_back(shape_text(row));
  std::vector<Picture> pictures;
  for (const std::string& shape : shapes) {
    BarChart chart{.title = fmt::format("{} at {}", op, shape),
                   .description = "Median time of each variant, with quartiles.",
                   .value = {.title = "ms, less is better"}};
    double least = std::numeric_limits<double>::infinity(), most = 0.0;
    std::string label;
    for (const Json& row : result.at("cases").items()) {
      if (row.at("op").as_string() != op || shape_text(row) != shape) continue;
      chart.bars.push_back(bar_of(row));
      label = label_of(row) == shape ? shape : fmt::format("{} ({})", label_of(row), shape);
      if (timed(row)) least = std::min(least, row.at("ms_median").as_number());
      if (timed(row)) most = std::max(most, row.at("ms_median").as_number());
    }
    const bool far_apart = most > kBarsUpTo * least;
    if (far_apart) chart.style = BarStyle::dots, chart.value.scale = Scale::logarithmic;
    pictures.push_back({fmt::format("{} at {}: median time, quartiles as whiskers{}.", op, label,
                                    far_apart ? "; a logarithmic axis" : ""),
                        draw(chart)});
  }
  return pictures;
}

Picture roofline_picture(const Json& result) {
  const Json& ceilings = result.at("ceilings");
  if (ceilings.at("copy_gb_s").is_null()) return {};
  double copy = ceilings.at("copy_gb_s").as_number(), product = 0.0;  // the fastest of the run
  if (const Json& measured = ceilings.at("product_tflop_s"); !measured.is_null())
    product = measured.as_number();
  double most = product;
  for (const Json& row : result.at("cases").items()) {
    if (!timed(row)) continue;
    copy = std::max(copy, row.at("copy_gb_s").as_number());
    if (!row.at("product_tflop_s").is_null())
      product = std::max(product, row.at("product_tflop_s").as_number());
    most = std::max({most, product, row.at("tflop_s").as_number()});
  }
  copy *= 1e-3;  // TB/s, or TFLOP/s at one operation a byte
  const SpeedUnit unit = unit_for(most);
  XyChart chart{.title = "Roofline",
                .description = "Speed of each variant over operations per compulsory byte.",
                .x = {.title = "operations per compulsory byte", .scale = Scale::logarithmic},
                .y = {.title = unit.name, .scale = Scale::logarithmic}};
  chart.series = roofline_series(result, unit, ops_of(result).size() > 1);
  if (chart.series.empty()) return {};
  label_highest(chart.series);
  double left = std::numeric_limits<double>::infinity(), right = 0.0;
  for (const ChartSeries& series : chart.series)
    for (const ChartPoint& point : series.points)
      left = std::min(left, point.x), right = std::max(right, point.x);
  const auto slope = [&](double at) { return std::pair(at, at * copy * unit.per_tflop); };
  if (product == 0.0) {
    chart.limits = {{"copy", {slope(0.5 * left), slope(2.0 * right)}}};
  } else {
    const double ridge = product / copy;
    left = 0.5 * std::min(left, ridge), right = 2.0 * std::max(right, ridge);
    chart.limits = {{"copy, product", {slope(left), slope(ridge), {right, product * unit.per_tflop}}}};
  }
  return {
      "What the fastest copy (the slope) and the fastest fp32 product (the level) of this run allow, and "
      "what each variant "
      "reaches.",
      draw(chart)};
}

}  // namespace vqlab
