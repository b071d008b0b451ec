// Recognition with the features of a trained model: one protocol for every model and head, so that the numbers
// compare (labels are used by the heads alone; hyper-parameters are chosen on held-out training images; the
// test split is looked at once).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/trained_model.hpp"

namespace vqlab {

struct RecognitionOptions {
  std::vector<std::string> features = {"dec_h"};  // pixels hog z_e z_q onehot histogram pyramid enc_h dec_h
  std::vector<std::string> heads = {"logistic"};  // logistic knn mlp
  std::vector<int64_t> labels = {0};              // label budgets, in images; 0 = all training images
  int64_t draws = 0;                              // label sets drawn for each budget; 0 = 5, 3 from 1000 labels on, 1 for all
  uint64_t seed = 0;
};

// Accuracies are shares in [0, 1] of the whole test split: mean, least and greatest over the draws.
struct RecognitionRow {
  std::string feature, head;
  int64_t labels = 0, draws = 0;
  double accuracy = 0.0, accuracy_min = 0.0, accuracy_max = 0.0;

  Json to_json() const;
};

// Throws Error(usage) for an unknown name, a feature that the model does not have, or a budget that the training
// set cannot fill; Error(data) if labels are missing, or the splits have different classes.
std::vector<RecognitionRow> recognise(TrainedModel& trained, const RecognitionOptions& options,
                                      const std::function<void(const std::string&)>& progress);

}  // namespace vqlab
