// A trained model, loaded from a run for inference.
#pragma once

#include <memory>
#include <string>

#include "checkpoint.hpp"
#include "feeder.hpp"
#include "run_directory.hpp"

namespace vqlab {

// Inference always computes batches of this many images, the last one padded: so a picture's codes do not
// depend on its neighbours, on the command, or on the batch size of training.
inline constexpr int64_t kInferenceBatch = 64;

class TrainedModel {
 public:
  // `which` as in Checkpoint; device and threads override the config's unless empty or negative.
  // On a GPU `trust` chooses the variant of the lookup, as for training; null: nobody tests. What it finds to
  // say goes to `warn`. `tuning_folder` as in TrainOptions.
  TrainedModel(
      const std::string& run, const std::string& which, const std::string& device, int64_t threads,
      Trust* trust = nullptr, const WarningSink& warn = [](const std::string&) {},
      const std::string& tuning_folder = "");

  const Config& config() const { return config_; }
  const Runtime& runtime() const { return runtime_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  const DataFacts& facts() const { return checkpoint_.facts(); }
  Model& model() { return model_; }
  const Model& model() const { return model_; }

  // Throws Error(usage) for a model without a decoder.
  void require_decoder(const std::string& command) const;
  // Throws Error(usage) for a model without codes, or whose codebook still waits for its first latents.
  void require_codes(const std::string& command) const;

 private:
  const Config config_;
  const Runtime runtime_;
  const Checkpoint checkpoint_;
  Model model_;
};

// A split of a config's data by name: train (without the validation images), validation or test.
struct NamedSplit {
  ImageSet set;
  int64_t begin = 0, end = 0;
  ImageRange range() const { return {&set, begin, end}; }
};
// Throws Error(usage) for an empty validation split, Error(data) if the images do not have the shape in
// `facts`.
NamedSplit load_split(const Config& config, const std::string& name, const DataFacts& facts);

}  // namespace vqlab
