#include "head.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/data/labels.hpp"
#include "engine/io/file.hpp"
#include "engine/io/json.hpp"

namespace vqlab {

std::vector<std::string> names_of_classes(const ImageSet& set, int64_t classes) {
  std::vector<std::string> names = set.class_names;
  for (int64_t c = int64_t(names.size()); c < classes; ++c) names.push_back(fmt::format("class {}", c));
  return names;
}

RecognitionHead fit_head(TrainedModel& trained, const std::string& feature, const ProgressSink& progress) {
  const ImageSet training = load_labelled(trained, Split::train);
  const int64_t classes = count_classes(training, trained.config().data.path);
  FeatureMatrix features = std::move(extract_features(trained, {&training, 0, training.count}, {feature})[0]);
  Standardiser standardiser(features);
  standardiser.apply(features);
  LogisticFit fit = fit_with_chosen_l2(trained.runtime(), features, training.labels, classes, 0);
  progress(fmt::format("logistic regression on {} of {} images: {:.2f} % of the held-out ones, l2 {:.1e}",
                       feature, training.count, 100.0 * fit.held_out_accuracy, fit.l2));
  return {.feature = feature,
          .weights_sha256 = trained.checkpoint().weights_sha256(),
          .class_names = names_of_classes(training, classes),
          .standardiser = std::move(standardiser),
          .model = std::move(fit.model)};
}

void save_head(const RecognitionHead& head, const std::string& path) {
  const int64_t C = head.model.classes, D = head.model.dims;
  const auto view = [](const std::vector<float>& values, int64_t offset,
                       std::initializer_list<int64_t> shape) {
    return View<const float>(values.data() + offset, shape);
  };
  const std::array entries = {TensorEntry("weight", view(head.model.values, 0, {C, D})),
                              TensorEntry("bias", view(head.model.values, C * D, {C})),
                              TensorEntry("feature_mean", view(head.standardiser.mean, 0, {D})),
                              TensorEntry("feature_scale", view(head.standardiser.scale, 0, {D}))};
  Json names = Json::array();
  for (const std::string& name : head.class_names) names.push_back(name);
  const std::string bytes = encode_safetensors(entries, {{"format", "pt"},
                                                         {"feature", head.feature},
                                                         {"weights_sha256", head.weights_sha256},
                                                         {"class_names", names.dump()}});
  write_file_durably(path + ".tmp", bytes);
  rename_durably(path + ".tmp", path);
}

namespace {

RecognitionHead read_head(const std::string& path, const std::string& weights_sha256) {
  constexpr int64_t kMaxBytes = int64_t(1) << 32;
  const Safetensors file(read_file(path, kMaxBytes, ErrorKind::data), path);
  const auto text = [&](const char* key) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end())
      throw Error(ErrorKind::data, fmt::format("the file has no {}: it is not a fitted head", key),
                  "remove it, and it is fitted again", path);
    return found->second;
  };
  if (text("weights_sha256") != weights_sha256)
    throw Error(ErrorKind::data, "the head was fitted to the features of other weights",
                "pass the run that it belongs to, or remove it, and it is fitted again", path);
  std::vector<float> bias = file.floats("bias"), weight = file.floats("weight");
  const int64_t C = int64_t(bias.size()), D = C == 0 ? 0 : int64_t(weight.size()) / C;
  RecognitionHead head{
      .feature = text("feature"),
      .weights_sha256 = weights_sha256,
      .class_names = {},
      .standardiser = Standardiser(file.floats("feature_mean"), file.floats("feature_scale")),
      .model = LinearModel(C, D)};
  if (C < 2 || int64_t(weight.size()) != C * D || int64_t(head.standardiser.mean.size()) != D ||
      int64_t(head.standardiser.scale.size()) != D)
    throw Error(ErrorKind::data, "the head's tensors do not fit together",
                "remove it, and it is fitted again", path);
  std::copy(bias.begin(), bias.end(), std::copy(weight.begin(), weight.end(), head.model.values.begin()));
  const Json names = parse_json(text("class_names"), path);
  for (const Json& name : names.items()) head.class_names.push_back(name.as_string());
  head.class_names.resize(size_t(C));
  return head;
}

}  // namespace

RecognitionHead load_head(const std::string& path, const std::string& weights_sha256) {
  try {
    return read_head(path, weights_sha256);
  } catch (const Error& error) {  // the format's own errors speak of checkpoints
    if (error.kind() != ErrorKind::checkpoint) throw;
    throw Error(ErrorKind::data, error.what(), "remove it, and it is fitted again", path);
  }
}

std::vector<float> predict(TrainedModel& trained, const RecognitionHead& head, const ImageRange& range) {
  FeatureMatrix features = std::move(extract_features(trained, range, {head.feature})[0]);
  head.standardiser.apply(features);
  const int64_t C = head.model.classes;
  std::vector<float> values = LogisticProblem(trained.runtime(), features, C).logits(head.model);
  for (auto row = values.begin(); row != values.end(); row += C) {
    const float largest = *std::max_element(row, row + C);
    double sum = 0.0;
    for (auto value = row; value != row + C; ++value) sum += std::exp(double(*value - largest));
    for (auto value = row; value != row + C; ++value)
      *value = float(std::exp(double(*value - largest)) / sum);
  }
  return values;
}

}  // namespace vqlab
