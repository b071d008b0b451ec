#include "recognition.hpp"

#include <algorithm>
#include <numeric>

#include "engine/data/labels.hpp"
#include "engine/stop_signals.hpp"
#include "finetune.hpp"
#include "knn.hpp"
#include "logistic.hpp"
#include "mlp.hpp"

namespace vqlab {
namespace {

constexpr int64_t kNeighbours = 5;

// What every head of a call shares.
struct Task {
  TrainedModel& trained;
  const ImageSet &training, &test;
  int64_t classes;
  const RecognitionOptions& options;
};

// A draw of labelled training images.
struct Labelled {
  std::vector<int64_t> places;
  std::vector<int32_t> labels;
};

Labelled draw(const Task& task, int64_t budget, int64_t number) {
  Labelled drawn;
  if (budget == 0) {
    drawn.places.resize(size_t(task.training.count));
    std::iota(drawn.places.begin(), drawn.places.end(), 0);
  } else {
    drawn.places =
        draw_labelled(task.training.labels, task.classes, budget, task.options.seed, uint32_t(number));
  }
  for (const int64_t place : drawn.places) drawn.labels.push_back(task.training.labels[size_t(place)]);
  return drawn;
}

FeatureMatrix rows_of(const FeatureMatrix& matrix, const std::vector<int64_t>& places) {
  FeatureMatrix part{.rows = int64_t(places.size()), .dims = matrix.dims, .values = {}};
  part.values.reserve(size_t(part.rows * part.dims));
  for (const int64_t place : places)
    part.values.insert(part.values.end(), matrix.row(place), matrix.row(place) + matrix.dims);
  return part;
}

// Features of both splits; standardised ones are made when a head first asks for them.
class SplitFeatures {
 public:
  SplitFeatures(const Task& task, const std::string& name)
      : training_(
            std::move(extract_features(task.trained, {&task.training, 0, task.training.count}, {name})[0])),
        test_(std::move(extract_features(task.trained, {&task.test, 0, task.test.count}, {name})[0])) {}
  const FeatureMatrix& training() const { return training_; }
  const FeatureMatrix& test() const { return test_; }
  // In place, of all training images: their labels are not used.
  void standardise() {
    const Standardiser standardiser(training_);
    standardiser.apply(training_);
    standardiser.apply(test_);
  }

 private:
  FeatureMatrix training_, test_;
};

std::vector<int32_t> with_logistic(const Task& task, const FeatureMatrix& training, const Labelled& labelled,
                                   const FeatureMatrix& test) {
  const LogisticFit fit =
      fit_with_chosen_l2(task.trained.runtime(), training, labelled.labels, task.classes, task.options.seed);
  return largest_logits(LogisticProblem(task.trained.runtime(), test, task.classes).logits(fit.model),
                        task.classes);
}

// What the model itself runs, since that has been tested on this device; null without codes.
const LookupVariant* trusted_lookup(const TrainedModel& trained) {
  const RunKernels& kernels = trained.model().kernels();
  return kernels.lookup.empty() ? nullptr : &find_lookup_variant(trained.runtime().device(), kernels.lookup);
}

std::vector<int32_t> with_head(const Task& task, const std::string& head, const SplitFeatures& features,
                               const Labelled& labelled) {
  const bool all = int64_t(labelled.places.size()) == task.training.count;
  const FeatureMatrix part = all ? FeatureMatrix{} : rows_of(features.training(), labelled.places);
  const FeatureMatrix& training = all ? features.training() : part;
  const Runtime& runtime = task.trained.runtime();
  if (head == "knn")
    return nearest_neighbours(runtime, training, labelled.labels, features.test(), kNeighbours,
                              trusted_lookup(task.trained));
  if (head == "mlp")
    return recognise_with_mlp(runtime, training, labelled.labels, features.test(), task.classes, {},
                              task.options.seed);
  return with_logistic(task, training, labelled, features.test());
}

double share_correct(const std::vector<int32_t>& found, const std::vector<int32_t>& labels) {
  int64_t correct = 0;
  for (size_t i = 0; i < found.size(); ++i) correct += found[i] == labels[i];
  return double(correct) / double(found.size());
}

int64_t draws_of(const RecognitionOptions& options, int64_t budget) {
  constexpr int64_t kManyLabels = 1000;
  if (budget == 0) return 1;
  return options.draws > 0 ? options.draws : budget < kManyLabels ? 5 : 3;
}

// Of what trains with a draw. Two seeds have no draw in common.
uint64_t seed_of(uint64_t seed, int64_t number) {
  constexpr uint64_t kMostDraws = 1000;
  return seed * kMostDraws + uint64_t(number);
}

// One row: `find` gives the classes of the test images for a draw.
RecognitionRow row_of(const Task& task, const std::string& feature, const std::string& head, int64_t budget,
                      const ProgressSink& progress,
                      const std::function<std::vector<int32_t>(int64_t number)>& find) {
  RecognitionRow row{.feature = feature,
                     .head = head,
                     .labels = budget == 0 ? task.training.count : budget,
                     .draws = draws_of(task.options, budget),
                     .accuracy_min = 1.0};
  for (int64_t number = 0; number < row.draws; ++number) {
    std::vector<int32_t> found = find(number);
    const double share = share_correct(found, task.test.labels);
    row.accuracy += share / double(row.draws);
    row.accuracy_min = std::min(row.accuracy_min, share);
    row.accuracy_max = std::max(row.accuracy_max, share);
    if (number == 0) row.predictions = std::move(found);
  }
  progress(fmt::format("{}, {}, {} labels: {:.2f} %", feature, head, row.labels, 100.0 * row.accuracy));
  return row;
}

constexpr std::string_view kFeatureHeads[] = {"logistic", "knn", "mlp"};

template <class Heads>
bool among(const Heads& heads, const std::string& name) {
  return std::find(std::begin(heads), std::end(heads), name) != std::end(heads);
}

// All that can be known to fail, before anything is computed: a call may take hours.
void require_options(const Task& task) {
  const RecognitionOptions& options = task.options;
  bool needs_features = false;
  for (const std::string& head : options.heads) {
    needs_features |= among(kFeatureHeads, head);
    if (!among(kFeatureHeads, head) && !trains_the_encoder(head))
      throw Error(ErrorKind::usage, "unknown head '" + head + "'",
                  "choose among logistic, knn, mlp, finetune, scratch", "--head");
  }
  for (const std::string& feature : options.features) {
    find_feature(feature);
    if (needs_features) require_feature(task.trained, feature);
  }
  for (const int64_t budget : options.labels) {
    if (budget < 0 || budget > task.training.count)
      throw Error(ErrorKind::usage,
                  fmt::format("{} labels of {} training images", budget, task.training.count),
                  "ask for fewer labels, or for all", "--labels");
    const int64_t labelled = int64_t(draw(task, budget, 0).places.size());
    if (among(options.heads, "knn")) require_neighbours(kNeighbours, labelled);
  }
}

}  // namespace

bool trains_the_encoder(const std::string& head) { return head == "finetune" || head == "scratch"; }

ImageSet load_labelled(const TrainedModel& trained, Split split) {
  const Config& config = trained.config();
  ImageSet set = load_image_set(config.data.kind, config.data.path, split);
  const auto& [height, width, channels] = trained.facts().shape;
  if (set.height != height || set.width != width || set.channels != channels)
    throw Error(ErrorKind::data, "the images do not have the shape that the model was trained on",
                "restore the data that the run was trained on", config.data.path);
  return set;
}

Json RecognitionRow::to_json() const {
  Json json = Json::object();
  json["feature"] = feature;
  json["head"] = head;
  json["labels"] = labels;
  json["draws"] = draws;
  json["accuracy"] = accuracy;
  json["accuracy_min"] = accuracy_min;
  json["accuracy_max"] = accuracy_max;
  return json;
}

std::vector<RecognitionRow> recognise(TrainedModel& trained, const RecognitionOptions& options,
                                      const ProgressSink& progress) {
  const std::string& path = trained.config().data.path;
  const ImageSet training = load_labelled(trained, Split::train), test = load_labelled(trained, Split::test);
  const int64_t classes = count_classes(training, path);
  require_classes(training, classes, path);
  require_classes(test, classes, path);
  const Task task{trained, training, test, classes, options};
  require_options(task);
  std::vector<RecognitionRow> rows;
  for (const std::string& feature : options.features) {
    if (std::none_of(options.heads.begin(), options.heads.end(),
                     [](const auto& h) { return among(kFeatureHeads, h); }))
      break;
    SplitFeatures features(task, feature);
    const auto add = [&](const std::string& head) {
      for (const int64_t budget : options.labels)
        rows.push_back(row_of(task, feature, head, budget, progress, [&](int64_t number) {
          return with_head(task, head, features, draw(task, budget, number));
        }));
    };
    // Neighbours are those of the features as they are, the others' are standardised.
    if (among(options.heads, "knn")) add("knn");
    if (among(options.heads, "logistic") || among(options.heads, "mlp")) features.standardise();
    for (const std::string& head : options.heads)
      if (head == "logistic" || head == "mlp") add(head);
  }
  const StopSignals signals;
  for (const std::string& head : options.heads)
    if (trains_the_encoder(head))
      for (const int64_t budget : options.labels)
        rows.push_back(row_of(task, "image", head, budget, progress, [&](int64_t number) {
          return recognise_by_training(trained, {.from_run = head == "finetune",
                                                 .labels = budget,
                                                 .classes = classes,
                                                 .seed = seed_of(options.seed, number)});
        }));
  return rows;
}

}  // namespace vqlab
