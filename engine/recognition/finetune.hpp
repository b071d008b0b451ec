// Recognition by training the encoder itself, with a linear layer behind it.
#pragma once

#include "engine/trained_model.hpp"

namespace vqlab {

struct FinetuneOptions {
  bool from_run = true;  // the encoder starts from the run's weights, else from random ones
  int64_t labels = 0;    // training images, equally many of each class; 0 = all, none is held back
  int64_t classes = 0;
  uint64_t seed = 0;
  int64_t epochs = 10, least_steps = 600;
};

// The net without quantizer and decoder, trained with Adam on a cosine schedule, in a temporary run
// directory; its last weights give the classes of the test images. Throws as train() does, and an
// Error of stopped_by() after a signal.
std::vector<int32_t> recognise_by_training(const TrainedModel& trained, const FinetuneOptions& options);

}  // namespace vqlab
