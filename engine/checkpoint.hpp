// Checkpoints: RUN/ckpt/step-NNNNNNNN/{model.safetensors, optim.safetensors, state.json, DONE}, links `last`
// and `best`.
//
// A checkpoint is written into a temporary directory, every file and then DONE (sizes and hashes of the
// others) made durable, and renamed into place: so it is there whole or not at all, whenever the process
// dies. A directory whose DONE does not verify is never loaded.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "model.hpp"

namespace vqlab {

// What a run must remember beside its tensors.
struct TrainingProgress {
  int64_t step = 0;
  int64_t skipped = 0;  // steps dropped because a value was not finite
  int64_t skipped_in_a_row = 0;
  int64_t evaluations = 0;
  std::optional<double> best_mse;       // of the evaluations so far
  std::optional<double> best_accuracy;  // instead, of a net without a decoder
  int64_t best_step = -1;
  int64_t without_improvement = 0;  // evaluations since the best one
  int64_t metrics_bytes = 0;        // length of metrics.jsonl that belongs to this state
};

// Facts about the data that a model cannot be built without.
struct DataFacts {
  ImageShape shape;
  int64_t training_images = 0;
  double variance = 0.0;    // of the training pixels in [0, 1]
  std::string pixels_xxh3;  // of all pixels of the training set, validation images included
};

// Writes RUN/ckpt/step-<step> and points `last` (and `best`, if asked) at it; one of that step is replaced.
// Then removes all but the newest `keep` step directories, step 0, `last` and `best`. Returns the
// sha256 of model.safetensors. Throws Error(resources) on a full disk, with the previous checkpoint intact.
std::string save_checkpoint(const std::string& run, const Runtime& runtime, Model& model,
                            const TrainingProgress& progress, const DataFacts& facts, bool is_best,
                            int64_t keep);

// A checkpoint that has been verified and read, its tensors still on the host.
class Checkpoint {
 public:
  // `which` is last, best, the name or the path of a step directory. A `last` that is damaged falls back to
  // the newest older checkpoint that verifies, and warnings() says so. Throws Error(checkpoint) if none does,
  // or a named one is damaged.
  Checkpoint(const std::string& run, const std::string& which);

  const std::string& directory() const { return directory_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  const TrainingProgress& progress() const { return progress_; }
  const DataFacts& facts() const { return facts_; }
  // Of the GPU that the run last was on.
  const ConvBook& convolution_book() const { return convolution_book_; }
  // The kernel variants that the run last used.
  const RunKernels& kernels() const { return kernels_; }
  const std::string& weights_sha256() const { return weights_sha256_; }
  // The two files; each names its tensors.
  const Safetensors& model_file() const { return *model_; }
  const Safetensors& optimiser_file() const { return *optimiser_; }

  // What fits of the weights and buffers, by name and shape, into a model that is about to be trained; the
  // rest keeps its initial values, and so do the optimiser and the quantizer. Returns how many tensors.
  // Throws Error(usage) if one of the encoder does not fit.
  int64_t start(Model& model, const Runtime& runtime) const;

  // Into a model of the same configuration that has been allocated. Throws Error(checkpoint) naming a missing
  // tensor or one of another shape.
  void restore(Model& model, const Runtime& runtime) const;

 private:
  void read(const std::string& directory);
  void read_files(const std::string& directory);

  std::string directory_, weights_sha256_;
  std::optional<Safetensors> model_, optimiser_;
  std::vector<std::string> warnings_;
  TrainingProgress progress_;
  DataFacts facts_;
  ConvBook convolution_book_;
  RunKernels kernels_;
  bool codebook_initialised_ = false;
};

}  // namespace vqlab
