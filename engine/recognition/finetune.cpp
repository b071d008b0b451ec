#include "finetune.hpp"

#include <cstdlib>
#include <filesystem>

#include "engine/evaluate.hpp"
#include "engine/stop_signals.hpp"
#include "engine/training.hpp"
#include "kernels/core/parallel.hpp"
#include "logistic.hpp"

namespace vqlab {
namespace {

namespace fs = std::filesystem;

// The place of a run in a new directory, which is removed with what it holds.
class TemporaryRun {
 public:
  TemporaryRun() : directory_((fs::temp_directory_path() / "vqlab-finetune-XXXXXX").string()) {
    if (mkdtemp(directory_.data()) == nullptr)
      throw Error(ErrorKind::resources, "cannot create a temporary directory",
                  "set TMPDIR to a directory with space that can be written", directory_);
  }
  ~TemporaryRun() {
    std::error_code ignored;
    fs::remove_all(directory_, ignored);
  }
  TemporaryRun(const TemporaryRun&) = delete;
  TemporaryRun& operator=(const TemporaryRun&) = delete;
  std::string path() const { return directory_ + "/run"; }

 private:
  std::string directory_;
};

// Half-trained weights are no answer.
void stop_if_asked() {
  if (const int signal = StopSignals::caught(); signal != 0)
    throw Error(stopped_by(signal), fmt::format("stopped by {}", signal == SIGINT ? "SIGINT" : "SIGTERM"),
                "run the command again: it keeps nothing", "recognise");
}

class SilentObserver : public TrainObserver {
 public:
  void note(const std::string&) override {}
  void warning(const std::string&) override {}
  void on_step(const StepReport&, int64_t, double, double) override {}
  void on_evaluation(int64_t, const Evaluation&, bool) override {}
};

Config finetune_config(const TrainedModel& trained, const FinetuneOptions& options,
                       const std::string& start) {
  Config config = trained.config();
  const int64_t images =
      options.labels > 0 ? options.labels : trained.facts().training_images + config.data.validation;
  config.name = "finetune";
  config.seed = int64_t(options.seed);
  config.device = trained.runtime().device() == Device::cpu ? "cpu" : "cuda";
  config.threads = worker_count();
  config.quantizer.kind = "none";
  config.quantizer.gradient = "straight_through";  // there is nothing to rotate to
  config.loss.reconstruction_weight = 0.0;
  config.loss.classifier_weight = 1.0;
  config.classifier = {.classes = options.classes, .hidden = 0, .dropout = 0.0, .label_smoothing = 0.0};
  config.data.validation = 0;
  config.data.labels = options.labels;
  config.data.mixup = 0.0;
  TrainConfig& train = config.train;
  train.batch_size = std::min(train.batch_size, images);
  const int64_t per_epoch = images / train.batch_size;
  train.epochs = std::max(options.epochs, (options.least_steps + per_epoch - 1) / per_epoch);
  train.schedule = "cosine";
  train.learning_rate = 1e-3;
  train.warmup_steps = 0;
  train.patience = 0;
  train.start_from = start;
  config.evaluate.every_epochs = train.epochs;
  config.checkpoint.every_steps = train.epochs * per_epoch;
  return config;
}

}  // namespace

std::vector<int32_t> recognise_by_training(const TrainedModel& trained, const FinetuneOptions& options) {
  const TemporaryRun run;
  // The checkpoint's directory is RUN/ckpt/NAME.
  const fs::path checkpoint = fs::canonical(trained.checkpoint().directory());
  SilentObserver silent;
  train({.config = finetune_config(trained, options, options.from_run ? checkpoint.string() : ""),
         .run = run.path(),
         .access = RunAccess::create,
         .max_steps = std::nullopt,
         .command = "recognise"},
        silent);
  stop_if_asked();
  TrainedModel classifier(run.path(), "last", "", -1);
  const NamedSplit test = load_split(classifier.config(), "test", classifier.facts());
  std::vector<int32_t> found;
  evaluate(classifier.model(), classifier.runtime(), test.range(), classifier.facts().variance,
           /*with_ssim=*/false, [&](int64_t, int64_t count) {
             const std::vector<int32_t> batch = largest_logits(
                 to_host(classifier.model().classifier()->probabilities(), classifier.runtime()),
                 options.classes);
             found.insert(found.end(), batch.begin(), batch.begin() + count);
           });
  stop_if_asked();
  return found;
}

}  // namespace vqlab
