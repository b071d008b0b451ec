#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "command.hpp"
#include "engine/io/png.hpp"
#include "engine/recognition/confusion.hpp"
#include "engine/recognition/head.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

std::vector<std::string> split_list(const std::string& text, const char* option) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    if (parts.back().empty())
      throw Error(ErrorKind::usage, fmt::format("an empty entry in '{}'", text),
                  "separate entries by single commas", option);
    begin = end + 1;
  }
  return parts;
}

std::vector<int64_t> parse_budgets(const std::string& text) {
  std::vector<int64_t> budgets;
  for (const std::string& part : split_list(text, "--labels")) {
    int64_t count = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), count);
    if (part != "all" && (error != std::errc() || end != part.data() + part.size() || count < 1))
      throw Error(ErrorKind::usage, fmt::format("'{}' is no number of labels", part),
                  "pass numbers or all, for example --labels 100,1000,all", "--labels");
    budgets.push_back(count);  // all: 0
  }
  return budgets;
}

class RecogniseCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory");
    o.option("features", features_,
             "comma-separated: pixels, hog, z_e, z_q, onehot, histogram, pyramid, enc_h, dec_h");
    o.option("head", heads_,
             "comma-separated: logistic, knn, mlp on the features; finetune, scratch: the encoder itself");
    o.option("labels", labels_, "comma-separated numbers of labelled training images, or all");
    o.option("draws", draws_, 0, 1000, "label sets drawn for each number; 0 = 5, or 3 from 1000 labels on");
    o.option("seed", options_seed_, 0, int64_t(1e12), "of the draws");
    o.flag("untrained", untrained_,
           "adds the same for the untrained encoder (feature enc_h of step 0): a lower bound");
    o.option("-o,--output", output_, "directory for the confusion matrix and the most confused images (PNG)");
    o.list("predict", images_, "PNG pictures to recognise, instead of all that");
    o.option("checkpoint", checkpoint_, "last, best, step-NNNNNNNN, or the path of a checkpoint");
  }

  CommandResult run(const CommonOptions& common) override {
    const ProgressSink progress = [&common](const std::string& line) {
      if (!common.quiet) std::fprintf(stderr, "%s\n", line.c_str());
    };
    const auto trained = load_trained(run_, checkpoint_, common);
    return images_.empty() ? compare_features(*trained, common, progress)
                           : predict_images(*trained, common, progress);
  }

 private:
  CommandResult compare_features(TrainedModel& trained, const CommonOptions& common,
                                 const ProgressSink& progress) {
    RecognitionOptions options{.features = split_list(features_, "--features"),
                               .heads = split_list(heads_, "--head"),
                               .labels = parse_budgets(labels_),
                               .draws = draws_,
                               .seed = uint64_t(options_seed_)};
    std::vector<RecognitionRow> rows = recognise(trained, options, progress);
    Json json = Json::object();
    json["run"] = run_;
    json["weights_sha256"] = trained.checkpoint().weights_sha256();
    json["files"] = Json::array();
    if (!output_.empty()) write_pictures(trained, rows, json);
    if (untrained_) {
      options.features = {"enc_h"};
      std::erase_if(options.heads, trains_the_encoder);  // from random weights: the head `scratch`
      const auto first = load_trained(run_, "step-00000000", common);
      for (RecognitionRow& row : recognise(*first, options, progress)) {
        row.feature = "enc_h, untrained";
        rows.push_back(row);
      }
    }
    json["rows"] = Json::array();
    for (const RecognitionRow& row : rows) json["rows"].push_back(row.to_json());
    json["device"] = trained.runtime().device_name();
    if (!common.json) print(rows);
    return {.json = json};
  }

  static void print(const std::vector<RecognitionRow>& rows) {
    std::printf("%-18s %-9s %8s %6s   accuracy of the test images\n", "feature", "head", "labels", "draws");
    for (const RecognitionRow& r : rows) {
      std::printf("%-18s %-9s %8lld %6lld   %.2f %%", r.feature.c_str(), r.head.c_str(),
                  static_cast<long long>(r.labels), static_cast<long long>(r.draws), 100.0 * r.accuracy);
      if (r.draws > 1) std::printf("   (%.2f to %.2f)", 100.0 * r.accuracy_min, 100.0 * r.accuracy_max);
      std::printf("\n");
    }
  }

  // Of the row that recognises best.
  void write_pictures(const TrainedModel& trained, const std::vector<RecognitionRow>& rows,
                      Json& json) const {
    constexpr int64_t kConfusions = 8, kColumns = 10;
    make_output_directory(output_);
    const ImageSet test = load_labelled(trained, Split::test);
    const auto best = std::max_element(rows.begin(), rows.end(),
                                       [](const auto& a, const auto& b) { return a.accuracy < b.accuracy; });
    const int64_t classes = *std::max_element(test.labels.begin(), test.labels.end()) + 1;
    const int64_t found = *std::max_element(best->predictions.begin(), best->predictions.end()) + 1;
    const int64_t size = std::max(classes, found);
    const std::vector<int64_t> counts = confusion_counts(test.labels, best->predictions, size);
    const std::vector<Confusion> confusions = worst_confusions(counts, size, kConfusions);
    const std::vector<std::string> names = names_of_classes(test, size);
    json["confusion"] = best->to_json();
    json["confusion"]["counts"] = Json::array();
    for (const int64_t count : counts) json["confusion"]["counts"].push_back(count);
    json["confusion"]["classes"] = Json::array();
    for (const std::string& name : names) json["confusion"]["classes"].push_back(name);
    const auto wrote = [&](const std::string& path) {
      json["files"].push_back(path);
      std::fprintf(stderr, "wrote %s\n", path.c_str());
    };
    write_confusion_matrix(output_ + "/confusion.png", counts, size);
    wrote(output_ + "/confusion.png");
    if (confusions.empty()) return;
    write_confused_images(output_ + "/confused.png", test, best->predictions, confusions, kColumns);
    wrote(output_ + "/confused.png");
    for (const Confusion& c : confusions)
      std::fprintf(stderr, "%lld of class %s were taken for %s\n", static_cast<long long>(c.images),
                   names[size_t(c.label)].c_str(), names[size_t(c.found)].c_str());
  }

  // With a logistic head that is kept beside the run.
  CommandResult predict_images(TrainedModel& trained, const CommonOptions& common,
                               const ProgressSink& progress) {
    const std::vector<std::string> features = split_list(features_, "--features");
    if (features.size() > 1 || heads_ != "logistic" || labels_ != "all" || untrained_ || !output_.empty())
      throw Error(ErrorKind::usage, "--predict uses a logistic head on one feature and all labels",
                  "leave out --head, --labels, --untrained, -o and all features but one", "--predict");
    const ImageSet set = read_images(trained);
    const std::string& feature = features[0];
    const std::string path = fmt::format("{}/head-{}.safetensors", run_, find_feature(feature).name);
    if (!std::filesystem::exists(path)) {
      progress("fitting a head to the training images, once");
      save_head(fit_head(trained, feature, progress), path);
    }
    const RecognitionHead head = load_head(path, trained.checkpoint().weights_sha256());
    const std::vector<float> probabilities = predict(trained, head, {&set, 0, set.count});
    Json json = Json::object();
    json["run"] = run_;
    json["feature"] = feature;
    json["predictions"] = Json::array();
    for (int64_t i = 0; i < set.count; ++i)
      json["predictions"].push_back(
          prediction(head, images_[size_t(i)], probabilities.data() + i * head.model.classes));
    if (!common.json) print_predictions(json);
    return {.json = json};
  }

  static Json prediction(const RecognitionHead& head, const std::string& image, const float* probabilities) {
    const int64_t C = head.model.classes;
    Json json = Json::object();
    json["image"] = image;
    json["class"] =
        head.class_names[size_t(std::max_element(probabilities, probabilities + C) - probabilities)];
    json["probabilities"] = Json::object();
    for (int64_t c = 0; c < C; ++c)
      json["probabilities"][head.class_names[size_t(c)]] = double(probabilities[c]);
    return json;
  }

  static void print_predictions(const Json& json) {
    for (const Json& p : json.at("predictions").items()) {
      std::vector<std::pair<double, std::string>> ranked;
      for (const auto& [name, value] : p.at("probabilities").members())
        ranked.emplace_back(value.as_number(), name);
      std::sort(ranked.rbegin(), ranked.rend());
      std::string text;
      for (size_t i = 0; i < std::min<size_t>(3, ranked.size()); ++i)
        text += fmt::format("{}{} {:.1f} %", i ? ", " : "", ranked[i].second, 100.0 * ranked[i].first);
      std::printf("%s: %s\n", p.at("image").as_string().c_str(), text.c_str());
    }
  }

  ImageSet read_images(const TrainedModel& trained) const {
    const auto& [height, width, channels] = trained.facts().shape;
    ImageSet set;
    set.height = height;
    set.width = width;
    set.channels = channels;
    for (const std::string& path : images_) {
      const PngImage image = read_png(path, channels);
      if (image.height != height || image.width != width)
        throw Error(ErrorKind::data,
                    fmt::format("the picture has {} x {} pixels, the model was trained on {} x {}",
                                image.height, image.width, height, width),
                    "resize it first", path);
      set.pixels.insert(set.pixels.end(), image.pixels.begin(), image.pixels.end());
      ++set.count;
    }
    return set;
  }

  std::string run_, features_ = "dec_h", heads_ = "logistic", labels_ = "all", output_, checkpoint_ = "last";
  std::vector<std::string> images_;
  int64_t draws_ = 0, options_seed_ = 0;
  bool untrained_ = false;
};

}  // namespace

extern const CommandEntry command_recognise;
const CommandEntry command_recognise{
    "recognise", "recognises images by the features of a run, beside baselines",
    []() -> std::unique_ptr<Command> { return std::make_unique<RecogniseCommand>(); }};

}  // namespace vqlab
