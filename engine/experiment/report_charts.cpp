#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "charts.hpp"
#include "figures.hpp"
#include "report.hpp"

namespace vqlab {
namespace {

constexpr size_t kMostSeries = 12;      // more cannot be told apart
constexpr size_t kMostLabels = 16;      // of points
constexpr double kLogarithmicFrom = 4;  // ratio of the greatest to the least value

Summary figure_of(const Json& group, const std::string& key) {
  return summary_from(group.at("figures").at(key));
}

std::string axis_title(const std::string& key) {
  const Figure* figure = find_figure(key);
  if (figure == nullptr) return key;
  return figure->unit.empty() || figure->title.find(figure->unit) != std::string::npos
             ? figure->title
             : fmt::format("{} ({})", figure->title, figure->unit);
}

// Logarithmic if all values are positive and far apart.
Scale scale_for(const std::vector<ChartSeries>& series, double ChartPoint::*value) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartSeries& s : series)
    for (const ChartPoint& point : s.points)
      if (std::isfinite(point.*value)) low = std::min(low, point.*value), high = std::max(high, point.*value);
  return low > 0.0 && high >= kLogarithmicFrom * low ? Scale::logarithmic : Scale::linear;
}

std::string limit_note(size_t count) {
  return count <= kMostSeries ? "" : fmt::format(" Only the first {} of {} are drawn.", kMostSeries, count);
}

Picture mse_picture(const Json& report) {
  BarChart chart{.title = "Test MSE of each member",
                 .description = "Mean over seeds with the range from the least to the greatest.",
                 .value = {.title = "test MSE, pixels on [0, 1]"},
                 .style = BarStyle::bars};
  for (const Json& group : report.at("groups").items()) {
    const Summary s = figure_of(group, "mse");
    if (s.count > 0)
      chart.bars.push_back(
          {group.at("name").as_string(), s.mean, s.low, s.high, format_figure("mse", s.mean)});
  }
  return {"Test MSE: mean and range over seeds; less is better.", chart.bars.empty() ? "" : draw(chart)};
}

// What tells a member from others of its series: the axes of a sweep but the quantizer's kind, or its name.
std::string point_label(const Json& group) {
  const std::string& name = group.at("name").as_string();
  if (name.find('=') == name.npos) return name;
  std::string label;
  for (const Json& text : group.at("overrides").items())
    if (const std::string& key = text.as_string(); !key.starts_with("quantizer.kind="))
      label += fmt::format("{}{}", label.empty() ? "" : ", ", key.substr(key.rfind('.', key.find('=')) + 1));
  return label;
}

// One series for each kind of quantizer, plain autoencoders as lines across.
Picture rate_distortion_picture(const Json& report) {
  XyChart chart{.title = "Rate and distortion",
                .description = "Test MSE over entropy bits per image, one series for each kind of quantizer.",
                .x = {.title = axis_title("bits_per_image_entropy")},
                .y = {.title = "test MSE, pixels on [0, 1]"}};
  const bool joined = report.at("experiment").as_string() != "recognition";  // its points are no curve
  std::set<std::pair<double, double>> rates;
  for (const Json& group : report.at("groups").items()) {
    const Summary bits = figure_of(group, "bits_per_image_entropy"), mse = figure_of(group, "mse");
    if (mse.count == 0) continue;
    const Json& floats = group.at("latent_floats");
    const bool drawn = std::any_of(chart.levels.begin(), chart.levels.end(),
                                   [&](const ChartLevel& level) { return level.y == mse.mean; });
    if (floats.is_number() && !drawn)
      chart.levels.push_back(
          {fmt::format("{} floats: {}", floats.as_integer(), group.at("name").as_string()), mse.mean});
    if (bits.count == 0) continue;
    const std::string kind = group.at("quantizer").as_string();
    auto it = std::find_if(chart.series.begin(), chart.series.end(),
                           [&](const ChartSeries& s) { return s.name == kind; });
    if (it == chart.series.end()) it = chart.series.insert(it, {kind, {}, joined});
    it->points.push_back({bits.mean, mse.mean, mse.low, mse.high, point_label(group)});
    rates.insert({figure_of(group, "bits_per_image_nominal").mean, bits.mean});
  }
  if (rates.size() < 2) return {};
  size_t points = 0;
  for (ChartSeries& series : chart.series) {
    std::sort(series.points.begin(), series.points.end(),
              [](const ChartPoint& a, const ChartPoint& b) { return a.x < b.x; });
    points += series.points.size();
  }
  if (points > kMostLabels)
    for (ChartSeries& series : chart.series)
      for (ChartPoint& point : series.points) point.label.clear();
  chart.x.scale = scale_for(chart.series, &ChartPoint::x);
  chart.y.scale = scale_for(chart.series, &ChartPoint::y);
  return {
      "Reconstruction over entropy bits per image; a plain autoencoder, which has no bits, is a line across.",
      draw(chart)};
}

std::string override_value(const Json& group, const std::string& key) {
  for (const Json& text : group.at("overrides").items())
    if (text.as_string().starts_with(key + "=")) return text.as_string().substr(key.size() + 1);
  return "";
}

// A figure's mean with its range, or the value of an axis.
Summary value_on(const Json& group, const std::string& key) {
  if (find_figure(key) != nullptr) return figure_of(group, key);
  const std::string text = override_value(group, key);
  Summary value;
  if (const auto number = parse_number(text)) value.add(*number);
  return value;
}

// Members that differ on the horizontal axis alone are joined.
Picture asked_picture(const ChartAxes& axes, const Json& report) {
  XyChart chart{.title = fmt::format("{} over {}", axes.y, axes.x),
                .description = "A point for each member, with its range over seeds.",
                .x = {.title = axis_title(axes.x)},
                .y = {.title = axis_title(axes.y)}};
  const bool joined = find_figure(axes.x) == nullptr;
  for (const Json& group : report.at("groups").items()) {
    const Summary x = value_on(group, axes.x), y = value_on(group, axes.y);
    if (x.count == 0 || y.count == 0) continue;
    std::string name;
    for (const Json& text : group.at("overrides").items())
      if (!text.as_string().starts_with(axes.x + "=")) name += (name.empty() ? "" : ", ") + text.as_string();
    if (name.empty()) name = axes.y;
    if (!joined) name = group.at("name").as_string();
    auto it = std::find_if(chart.series.begin(), chart.series.end(),
                           [&](const ChartSeries& s) { return s.name == name; });
    if (it == chart.series.end()) it = chart.series.insert(it, {name, {}, joined});
    it->points.push_back({x.mean, y.mean, y.low, y.high, ""});
  }
  const size_t count = chart.series.size();
  chart.series.resize(std::min(count, kMostSeries));
  chart.x.scale = scale_for(chart.series, &ChartPoint::x);
  chart.y.scale = scale_for(chart.series, &ChartPoint::y);
  return {fmt::format("{} over {}.{}", axis_title(axes.y), axis_title(axes.x), limit_note(count)),
          draw(chart)};
}

std::vector<Picture> drawn(std::vector<Picture> pictures) {
  std::erase_if(pictures, [](const Picture& picture) { return picture.svg.empty(); });
  return pictures;
}

}  // namespace

std::vector<Picture> figure_pictures(const ExperimentPlan& plan, const Json& report) {
  std::vector<Picture> pictures = {mse_picture(report), rate_distortion_picture(report)};
  for (const ChartAxes& axes : plan.charts) pictures.push_back(asked_picture(axes, report));
  return drawn(pictures);
}

std::vector<Picture> training_pictures(const Json& report) {
  XyChart chart{
      .title = "Validation MSE during training",
      .description = "Validation MSE over seconds of training steps, the first seed of each member.",
      .x = {.title = "seconds of training steps"},
      .y = {.title = "validation MSE, pixels on [0, 1]"}};
  std::map<std::string, bool> reconstructs;
  for (const Json& group : report.at("groups").items())
    reconstructs[group.at("name").as_string()] = group.at("reconstructs").as_bool();
  std::set<std::string> names;
  for (const Json& run : report.at("runs").items()) {
    const std::string& name = run.at("name").as_string();
    if (run.at("state").as_string() != "done" || !reconstructs[name] || !names.insert(name).second) continue;
    ChartSeries series{.name = name, .points = {}};
    for (const Json& evaluation : run.at("train").at("evaluations").items())
      if (evaluation.at("seconds").is_number() && evaluation.at("mse").is_number())
        series.points.push_back(
            {.x = evaluation.at("seconds").as_number(), .y = evaluation.at("mse").as_number()});
    if (!series.points.empty()) chart.series.push_back(series);
  }
  const size_t count = chart.series.size();
  if (count == 0) return {};
  chart.series.resize(std::min(count, kMostSeries));
  chart.y.scale = scale_for(chart.series, &ChartPoint::y);
  return {{"Validation MSE at the ends of epochs; the first seed of each member." + limit_note(count),
           draw(chart)}};
}

std::vector<Picture> recognition_pictures(const Json& report) {
  XyChart budgets{.title = "Recognition with few labels",
                  .description = "Test accuracy over the number of labels, logistic head.",
                  .x = {.title = "labels", .scale = Scale::logarithmic},
                  .y = {.title = "test accuracy (%)"}};
  BarChart most{.title = "Recognition with the most labels",
                .description = "Test accuracy of every feature and head, mean and range.",
                .value = {.title = "test accuracy (%)"},
                .style = BarStyle::dots};
  int64_t training_images = 0, most_labels = -1;
  for (const Json& run : report.at("runs").items())
    if (const Json* images = run.find("training_images")) training_images = images->as_integer();
  const auto images_of = [&](int64_t labels) { return labels == 0 ? training_images : labels; };
  const auto count_of = [&](const Json& row) { return images_of(row.at("labels").as_integer()); };
  for (const Json& row : report.at("recognition").items()) most_labels = std::max(most_labels, count_of(row));
  for (const Json& row : report.at("recognition").items()) {
    const Summary s = summary_from(row.at("accuracy"));
    const std::string name = row_name(row);
    if (count_of(row) == most_labels)
      most.bars.push_back(
          {name, 100.0 * s.mean, 100.0 * s.low, 100.0 * s.high, format_figure("accuracy", s.mean)});
    if (row.at("head").as_string() != "logistic") continue;
    auto it = std::find_if(budgets.series.begin(), budgets.series.end(),
                           [&](const ChartSeries& series) { return series.name == name; });
    if (it == budgets.series.end()) it = budgets.series.insert(it, {name, {}, true});
    it->points.push_back({double(count_of(row)), 100.0 * s.mean, 100.0 * s.low, 100.0 * s.high, ""});
  }
  // The most that a net's own classifier sees: it does without the validation images.
  const int64_t own_most = std::min(most_labels, training_images);
  for (const Json& group : report.at("groups").items())
    if (const Summary s = figure_of(group, "accuracy");
        s.count > 0 && images_of(group.at("classifier_labels").as_integer()) == own_most)
      most.bars.push_back({group.at("name").as_string() + ", own classifier", 100.0 * s.mean, 100.0 * s.low,
                           100.0 * s.high, format_figure("accuracy", s.mean)});
  std::erase_if(budgets.series, [](const ChartSeries& series) { return series.points.size() < 2; });
  const size_t count = budgets.series.size();
  budgets.series.resize(std::min(count, kMostSeries));
  std::vector<Picture> pictures;
  if (!most.bars.empty())
    pictures.push_back({"Test accuracy with the most labels; the axis does not begin at 0.", draw(most)});
  if (count > 0)
    pictures.push_back(
        {"Test accuracy over the number of labels, logistic head." + limit_note(count), draw(budgets)});
  return pictures;
}

}  // namespace vqlab
