#include "figures.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace vqlab {

const std::vector<Figure>& figures() {
  static const std::vector<Figure> list = {
      {"mse", "test MSE", "on [0, 1]", "test", "mse", true},
      {"psnr_db", "PSNR of the mean MSE", "dB", "test", "psnr_db", true},
      {"psnr_db_mean", "PSNR, mean of images", "dB", "test", "psnr_db_mean", true},
      {"ssim", "SSIM", "", "test", "ssim", true},
      {"bits_per_image_nominal", "bits/image, nominal", "bits", "test", "bits_per_image_nominal"},
      {"bits_per_image_entropy", "bits/image, entropy", "bits", "test", "bits_per_image_entropy"},
      {"codes_used", "codes used", "", "test", "codes_used"},
      {"codebook_size", "of codes", "", "test", "codebook_size"},
      {"perplexity", "perplexity", "", "test", "perplexity"},
      {"accuracy", "own classifier", "share of test images", "test", "accuracy"},
      {"seconds", "training seconds", "s", "train", "seconds"},
      {"images_per_second", "images/s", "images/s", "train", "images_per_second"},
  };
  return list;
}

const Figure* find_figure(const std::string& key) {
  const auto& list = figures();
  const auto it = std::find_if(list.begin(), list.end(), [&](const Figure& f) { return f.key == key; });
  return it == list.end() ? nullptr : &*it;
}

std::optional<double> value_of(const Figure& figure, const Json& result) {
  const Json* section = result.find(figure.section);
  const Json* value = section ? section->find(figure.member) : nullptr;
  if (value == nullptr || !value->is_number() || !std::isfinite(value->as_number())) return {};
  return value->as_number();
}

std::string format_figure(const std::string& key, double value) {
  if (!std::isfinite(value)) return "-";
  if (key == "mse") return value < 1e-3 ? fmt::format("{:.3g}", value) : fmt::format("{:.5f}", value);
  if (key.starts_with("psnr")) return fmt::format("{:.2f}", value);
  if (key == "ssim") return fmt::format("{:.4f}", value);
  if (key == "percent") return fmt::format("{:.1f}", 100.0 * value);  // its unit is in the caption
  if (key == "accuracy") return fmt::format("{:.2f} %", 100.0 * value);
  if (key.starts_with("bits") || key == "perplexity" || key == "seconds") return fmt::format("{:.1f}", value);
  if (key == "codes_used" || key == "images_per_second") return fmt::format("{:.0f}", value);
  return fmt::format("{:.6g}", value);
}

void Summary::add(double value, double value_low, double value_high) {
  low = count == 0 ? value_low : std::min(low, value_low);
  high = count == 0 ? value_high : std::max(high, value_high);
  ++count;
  mean += (value - mean) / double(count);
}

Json Summary::to_json() const {
  if (count == 0) return Json();
  Json json = Json::object();
  json["mean"] = mean;
  json["min"] = low;
  json["max"] = high;
  json["n"] = count;
  return json;
}

Summary summary_from(const Json& json) {
  if (!json.is_object()) return {};
  return {.count = json.at("n").as_integer(),
          .mean = json.at("mean").as_number(),
          .low = json.at("min").as_number(),
          .high = json.at("max").as_number()};
}

std::optional<double> seconds_until(const Json& result, double level) {
  const Json* train = result.find("train");
  const Json* evaluations = train ? train->find("evaluations") : nullptr;
  if (evaluations == nullptr || !evaluations->is_array()) return {};
  for (const Json& evaluation : evaluations->items()) {
    const Json *mse = evaluation.find("mse"), *seconds = evaluation.find("seconds");
    if (mse && mse->is_number() && seconds && seconds->is_number() && mse->as_number() <= level)
      return seconds->as_number();
  }
  return {};
}

}  // namespace vqlab
