// A whole training run: data, trainer, evaluation, checkpoints, metrics, signals.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluate.hpp"
#include "run_choices.hpp"
#include "run_directory.hpp"
#include "trainer.hpp"

namespace vqlab {

// The training images of a config, split into what is trained on and what is held back for validation.
struct TrainingData {
  ImageSet set;
  ImageRange training() const {
    return {&set, 0, set.count - validation_images, labelled.empty() ? nullptr : &labelled};
  }
  ImageRange validation() const { return {&set, set.count - validation_images, set.count}; }
  int64_t validation_images = 0;
  int64_t classes = 0;              // with a classifier
  std::vector<int64_t> labelled{};  // the only images to train on: without a decoder others teach nothing
};
// With data.labels the other training images lose their label (-1). Throws Error(data) on missing or damaged
// files or, with a classifier, labels; Error(usage) if validation leaves nothing to train on.
TrainingData load_training_data(const Config& config);

// The number of classes is the data's, unless the configuration says it.
Config with_classes(Config config, const TrainingData& data);

struct TrainOptions {
  Config config;
  std::string run;  // directory
  RunAccess access = RunAccess::create;
  std::optional<int64_t> max_steps;  // counted from step 0
  std::string command;               // for command.txt
  Trust* trust = nullptr;            // who tests the kernels of a GPU; null: nobody
  std::string tuning_folder = "";    // where `compare --tune` keeps what it chose; "": nowhere
  bool graph = true;                 // steps as one graph, on a GPU
  bool new_kernels = false;          // a resumed run may use other kernels than before
};

// What the user is told while it runs.
class TrainObserver : public RunMessages {
 public:
  // After each step that was logged; images_per_second counts training steps alone, eta is of the whole run.
  virtual void on_step(const StepReport& report, int64_t end_step, double images_per_second,
                       double eta_seconds) = 0;
  virtual void on_evaluation(int64_t epoch, const Evaluation& evaluation, bool is_best) = 0;
};

struct TrainResult {
  std::string run;
  int64_t steps = 0;  // done since step 0
  double epochs = 0.0;
  double seconds = 0.0;            // wall, of this call
  double images_per_second = 0.0;  // training steps of this call alone: no evaluation, checkpoint or log
  int64_t peak_bytes = 0;          // largest resident set of the process
  std::string device;
  bool graph = false;          // steps were launched as one graph, when it ended
  std::string weights_sha256;  // of the last checkpoint's model.safetensors
  std::optional<StepReport> final_step;
  std::string stopped_by;  // epochs | max_steps | patience | signal
  int signal = 0;          // the signal, if that was it
};

// Runs or continues a run. Throws whatever its parts throw; what was checkpointed stays.
TrainResult train(const TrainOptions& options, TrainObserver& observer);

struct MemoryPlan {
  std::vector<std::string> lines;  // about the memory that a run will take and the largest batch that fits
  Residency residency;             // of the training images
};
// Throws Error(resources) if the run's own memory does not fit into what the system has left.
MemoryPlan plan_memory(const Config& config, const TrainingData& data, const Runtime& runtime);

}  // namespace vqlab
