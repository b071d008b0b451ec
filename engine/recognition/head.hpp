// A logistic head that has been fitted to a run's features, kept in a file, to recognise new images with.
#pragma once

#include "logistic.hpp"
#include "recognition.hpp"

namespace vqlab {

// It belongs to the weights whose features it was fitted to.
struct RecognitionHead {
  std::string feature, weights_sha256;
  std::vector<std::string> class_names;
  Standardiser standardiser;
  LinearModel model;
};
RecognitionHead fit_head(TrainedModel& trained, const std::string& feature, const ProgressSink& progress);
void save_head(const RecognitionHead& head, const std::string& path);
// Throws Error(data) if the file is damaged, or was fitted to features of other weights.
RecognitionHead load_head(const std::string& path, const std::string& weights_sha256);

// Probabilities (images, classes) of images in the range, of the shape that the run was trained on.
std::vector<float> predict(TrainedModel& trained, const RecognitionHead& head, const ImageRange& range);

// Class names by label, or "class 0" ... where the set names none.
std::vector<std::string> names_of_classes(const ImageSet& set, int64_t classes);

}  // namespace vqlab
