// Recognition with the features of a trained model: one protocol for every model and head, so that the
// numbers compare. Labels are used by the heads alone; hyper-parameters are chosen on held-out training
// images; the test split is looked at once.
#pragma once

#include <functional>

#include "features.hpp"

namespace vqlab {

struct RecognitionOptions {
  std::vector<std::string> features = {"dec_h"};  // names of feature_table()
  // logistic, knn (5 neighbours) and mlp on frozen features. finetune and scratch train the run's encoder
  // with a linear layer behind it, from the run's weights and from random ones: they see images, whatever the
  // features.
  std::vector<std::string> heads = {"logistic"};
  std::vector<int64_t> labels = {0};  // label budgets, in images, equally many of each class; 0 = all
  int64_t draws = 0;  // label sets drawn for each budget, up to 1000; 0 = 5, or 3 from 1000 labels on;
                      // always 1 for all
  uint64_t seed = 0;  // keys the draws
};

// Accuracies are shares in [0, 1] of the whole test split: mean, least and greatest over the draws.
struct RecognitionRow {
  std::string feature, head;
  int64_t labels = 0, draws = 0;
  double accuracy = 0.0, accuracy_min = 0.0, accuracy_max = 0.0;
  std::vector<int32_t> predictions{};  // classes of the test images, of the first draw

  Json to_json() const;  // without the predictions
};

// A split of the run's data. Throws Error(data) if it does not have the shape that the run was trained on.
ImageSet load_labelled(const TrainedModel& trained, Split split);

// finetune and scratch.
bool trains_the_encoder(const std::string& head);

using ProgressSink = std::function<void(const std::string& line)>;

// A row for each feature, head and budget. Before it computes anything it throws Error(usage) for an unknown
// name, a feature that the model does not have, or a budget that the training set cannot fill; Error(data) if
// labels are missing, or the splits have different classes. A signal while the encoder is trained is an
// Error of stopped_by().
std::vector<RecognitionRow> recognise(TrainedModel& trained, const RecognitionOptions& options,
                                      const ProgressSink& progress);

}  // namespace vqlab
