#include "training.hpp"

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "checkpoint.hpp"
#include "data/labels.hpp"
#include "environment.hpp"
#include "io/file.hpp"
#include "pictures.hpp"
#include "run_choices.hpp"
#include "stop_signals.hpp"
#include "trust.hpp"

namespace vqlab {
namespace {

constexpr int64_t kLogEverySteps = 50;
constexpr int64_t kPictures = 8;  // columns of a picture grid

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The state of one call of train().
class Training {
 public:
  Training(const TrainOptions& options, TrainObserver& observer);
  TrainResult run();

 private:
  void open_new();
  void open_existing();
  void start_from_another();
  void use_graph();
  Trust* trust() const { return runtime_.device() == Device::cuda ? options_.trust : nullptr; }
  bool finished();
  void show(const StepReport& report, bool logged);
  void log(const StepReport& report);
  void evaluate_epoch(int64_t epoch);
  void judge(const Evaluation& e);
  void write_pictures();
  void save();
  bool epoch_ends() const { return trainer_->steps_done() % trainer_->steps_per_epoch() == 0; }
  bool evaluation_due(int64_t epoch) const;
  double images_per_second() const;
  double logged_seconds() const;

  TrainObserver& observer_;
  const Clock::time_point start_ = Clock::now();
  const Runtime runtime_;
  const TrainingData data_;
  const TrainOptions options_;
  const Config& config_ = options_.config;
  KernelChoice kernels_;
  std::unique_ptr<Trainer> trainer_;
  int64_t end_step_ = 0;
  std::unique_ptr<RunDirectory> directory_;
  std::unique_ptr<AppendFile> metrics_;
  DataFacts facts_;
  TrainingProgress progress_;
  bool newest_is_best_ = false;
  int64_t saved_step_ = -1, first_step_ = 0;
  double step_seconds_ = 0.0;
  double earlier_seconds_ = 0.0;  // of steps in earlier calls
  TrainResult result_;
};

TrainOptions with_classes(TrainOptions options, const TrainingData& data) {
  options.config = with_classes(std::move(options.config), data);
  return options;
}

Training::Training(const TrainOptions& options, TrainObserver& observer)
    : observer_(observer),
      runtime_(options.config.device, int(options.config.threads)),
      data_(load_training_data(options.config)),
      options_(with_classes(options, data_)) {
  observer.note(runtime_.note());
  observer.note(fmt::format("data: {} training and {} validation images of {}x{}x{}",
                            data_.training().count(), data_.validation().count(), data_.set.height,
                            data_.set.width, data_.set.channels));
  if (config_.data.labels > 0)
    observer.note(
        fmt::format("labels: of {} training images, equally many of each class", config_.data.labels));
  const MemoryPlan memory = plan_memory(config_, data_, runtime_);
  for (const std::string& line : memory.lines) observer.note(line);
  kernels_ = choose_kernels_of_run(config_, data_.set, runtime_, trust(), options.tuning_folder, observer);
  trainer_ = std::make_unique<Trainer>(config_, runtime_, data_.training(), memory.residency);
  if (options.graph) use_graph();
  end_step_ = std::min(trainer_->total_steps(), options.max_steps.value_or(trainer_->total_steps()));
  facts_ = {.shape = trainer_->model().shape(),
            .training_images = data_.set.count - data_.validation_images,
            .variance = trainer_->variance(),
            .pixels_xxh3 =
                xxh3_hex({reinterpret_cast<const char*>(data_.set.pixels.data()), data_.set.pixels.size()})};
  directory_ = std::make_unique<RunDirectory>(options_.run, options_.access);
  options_.access == RunAccess::resume ? open_existing() : open_new();
}

void Training::use_graph() {
  const char* sync = std::getenv("VQLAB_SYNC");
  if (runtime_.device() == Device::cuda && sync != nullptr && std::string(sync) == "1")
    return observer_.note("no graph: --sync waits after each op");
  trainer_->use_graph([this](const std::string& why) {
    observer_.note("no graph, ops are launched one by one: the step cannot be captured: " + why);
  });
}

void Training::open_new() {
  const RunDirectory& run = *directory_;
  try {
    std::filesystem::create_directories(run / "ckpt");
    std::filesystem::create_directories(run / "samples");
    write_file_durably(run / "command.txt", options_.command + "\n");
    write_file_durably(run / "env.json", environment(runtime_).dump(2) + "\n");
    metrics_ = std::make_unique<AppendFile>(run / "metrics.jsonl");
    choose_plans_of_run(config_, trainer_->model(), runtime_, observer_);
    use_kernels_of_run(kernels_, trainer_->model(), runtime_, observer_);
    start_from_another();
    save();
    write_file_durably(run / "config.toml.tmp", to_toml(config_));
    rename_durably(run / "config.toml.tmp", run / "config.toml");  // last: what has it can be resumed
    fsync_directory(std::filesystem::absolute(run.path()).parent_path().string());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(options_.run, ignored);  // a half-made run is of no use
    throw;
  }
}

void Training::start_from_another() {
  const std::string& other = config_.train.start_from;
  if (other.empty()) return;
  const bool is_checkpoint = std::filesystem::exists(other + "/DONE");
  const Checkpoint checkpoint(other, is_checkpoint ? other : "last");
  for (const std::string& line : checkpoint.warnings()) observer_.warning(line);
  Model& model = trainer_->model();
  observer_.note(fmt::format("{} of {} tensors start from {}", checkpoint.start(model, runtime_),
                             model.parameters().parameters().size() + model.parameters().buffers().size(),
                             checkpoint.directory()));
}

void Training::open_existing() {
  const Checkpoint checkpoint(options_.run, "last");
  for (const std::string& line : checkpoint.warnings()) observer_.warning(line);
  const DataFacts& facts = checkpoint.facts();
  if (facts.training_images != facts_.training_images || facts.pixels_xxh3 != facts_.pixels_xxh3 ||
      facts.shape.height != facts_.shape.height || facts.shape.width != facts_.shape.width)
    throw Error(ErrorKind::data, "the images are not those that the run started with",
                "restore the data, or start a new run", config_.data.path);
  checkpoint.restore(trainer_->model(), runtime_);
  trainer_->model().convolution_book() = checkpoint.convolution_book();
  choose_plans_of_run(config_, trainer_->model(), runtime_, observer_);
  if (!options_.new_kernels) kernels_ = kernels_as_before(checkpoint.kernels(), kernels_, runtime_, trust());
  use_kernels_of_run(kernels_, trainer_->model(), runtime_, observer_);
  progress_ = checkpoint.progress();
  trainer_->resume_at(progress_.step, progress_.skipped, progress_.skipped_in_a_row);
  std::filesystem::create_directories(options_.run + "/samples");
  first_step_ = saved_step_ = progress_.step;
  result_.weights_sha256 = checkpoint.weights_sha256();
  metrics_ = std::make_unique<AppendFile>(options_.run + "/metrics.jsonl", progress_.metrics_bytes);
  earlier_seconds_ = logged_seconds();
  observer_.note(fmt::format("resumed at step {} from {}", progress_.step, checkpoint.directory()));
}

TrainResult Training::run() {
  const StopSignals signals;
  while (!finished()) {
    const Clock::time_point step_start = Clock::now();
    trainer_->step();
    const int64_t step = trainer_->steps_done();
    // The last step of --max-steps is shown but not logged: a resumed run then has the lines of an
    // uninterrupted one.
    const bool logged = step % kLogEverySteps == 0 || epoch_ends(), shown = logged || step == end_step_;
    const StepReport report = shown ? trainer_->report() : StepReport{};  // waits for the device
    step_seconds_ += seconds_since(step_start);
    if (shown) show(report, logged);
    const int64_t epoch = step / trainer_->steps_per_epoch();
    if (epoch_ends() && evaluation_due(epoch)) evaluate_epoch(epoch);
    if (step % config_.checkpoint.every_steps == 0 || newest_is_best_) save();
  }
  if (saved_step_ != trainer_->steps_done()) save();
  metrics_->sync();
  result_.run = options_.run;
  result_.steps = trainer_->steps_done();
  result_.epochs = double(result_.steps) / double(trainer_->steps_per_epoch());
  result_.images_per_second = images_per_second();
  result_.device = runtime_.device_name();
  result_.graph = trainer_->has_graph();
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  result_.peak_bytes = int64_t(usage.ru_maxrss) * 1024;
  result_.seconds = seconds_since(start_);
  return result_;
}

// Sets stopped_by when it returns true.
bool Training::finished() {
  if (config_.train.patience > 0 && progress_.without_improvement >= config_.train.patience)
    result_.stopped_by = "patience";
  else if (trainer_->steps_done() >= trainer_->total_steps())
    result_.stopped_by = "epochs";
  else if (trainer_->steps_done() >= end_step_)
    result_.stopped_by = "max_steps";
  else if ((result_.signal = StopSignals::caught()) != 0)
    result_.stopped_by = "signal";
  return !result_.stopped_by.empty();
}

double Training::images_per_second() const {
  const int64_t images = (trainer_->steps_done() - first_step_) * config_.train.batch_size;
  return step_seconds_ > 0.0 ? double(images) / step_seconds_ : 0.0;
}

void Training::show(const StepReport& r, bool logged) {
  if (logged) log(r);
  const double per_step = step_seconds_ / double(r.step - first_step_);
  observer_.on_step(r, end_step_, images_per_second(), per_step * double(end_step_ - r.step));
  result_.final_step = r;
}

void Training::log(const StepReport& r) {
  Json line = Json::object();
  line["kind"] = "step";
  line["step"] = r.step;
  line["loss"] = r.loss;
  line["reconstruction"] = r.reconstruction;
  line["commitment"] = r.commitment;
  if (trainer_->model().classifier() != nullptr) line["classification"] = r.classification;
  line["error"] = r.error;
  line["gradient_norm"] = r.gradient_norm;
  line["learning_rate"] = r.learning_rate;
  line["skipped"] = trainer_->optimizer().skipped;
  if (r.has_codebook) {
    line["codes_used"] = int64_t(r.health.used);
    line["perplexity"] = double(r.health.perplexity);
    line["dead"] = int64_t(r.health.dead);
    line["age"] = double(r.health.mean_age);
    line["norm"] = double(r.health.mean_norm);
    line["drift"] = double(r.health.drift);
    line["replaced"] = r.replaced;
  }
  line["images_per_second"] = images_per_second();
  line["seconds"] = earlier_seconds_ + step_seconds_;
  metrics_->write_line(line.dump());
}

// The seconds of the last step line, and those that the steps after it will have taken. A line that cannot be
// read is not worth a run that cannot be resumed.
double Training::logged_seconds() const {
  double seconds = 0.0;
  std::ifstream file(options_.run + "/metrics.jsonl");
  for (std::string text; std::getline(file, text);) try {
      const Json line = parse_json(text, options_.run + "/metrics.jsonl");
      if (line.find("seconds") == nullptr) continue;
      const int64_t images = (progress_.step - line.at("step").as_integer()) * config_.train.batch_size;
      const double speed = line.at("images_per_second").as_number();
      seconds = line.at("seconds").as_number() + (speed > 0.0 ? double(images) / speed : 0.0);
    } catch (const Error&) {
      continue;
    }
  return seconds;
}

bool Training::evaluation_due(int64_t epoch) const {
  return epoch % config_.evaluate.every_epochs == 0 || epoch == config_.train.epochs;
}

void Training::evaluate_epoch(int64_t epoch) {
  if (data_.validation_images > 0) {
    const Evaluation e = evaluate(trainer_->model(), runtime_, data_.validation(), trainer_->variance());
    ++progress_.evaluations;
    judge(e);
    Json line = Json::object();
    line["kind"] = "evaluation";
    line["step"] = trainer_->steps_done();
    line["epoch"] = epoch;
    line["split"] = "validation";
    const Json figures = e.to_json();
    for (const auto& [key, value] : figures.members()) line[key] = value;
    metrics_->write_line(line.dump());
    metrics_->sync();
    observer_.on_evaluation(epoch, e, newest_is_best_);
  }
  write_pictures();
}

// By the error of the reconstruction, or, without a decoder, by the share of images recognised.
void Training::judge(const Evaluation& e) {
  newest_is_best_ = e.has_decoder
                        ? std::isfinite(e.mse) && (!progress_.best_mse || e.mse < *progress_.best_mse)
                        : !progress_.best_accuracy || e.accuracy > *progress_.best_accuracy;
  progress_.without_improvement = newest_is_best_ ? 0 : progress_.without_improvement + 1;
  if (!newest_is_best_) return;
  if (e.has_decoder)
    progress_.best_mse = e.mse;
  else
    progress_.best_accuracy = e.accuracy;
  progress_.best_step = trainer_->steps_done();
}

// Of the first validation images, or of the first training images if none are held back.
void Training::write_pictures() {
  if (!trainer_->model().has_decoder()) return;
  ImageRange first = data_.validation_images > 0 ? data_.validation() : data_.training();
  first.end = first.begin + std::min(first.count(), kPictures);
  evaluate(trainer_->model(), runtime_, first, trainer_->variance(), /*with_ssim=*/false);
  write_grid(options_.run + fmt::format("/samples/step-{:08}.png", trainer_->steps_done()), trainer_->model(),
             runtime_, first.count());
}

void Training::save() {
  metrics_->sync();
  progress_.step = trainer_->steps_done();
  progress_.skipped = trainer_->optimizer().skipped;
  progress_.skipped_in_a_row = trainer_->optimizer().skipped_in_a_row;
  progress_.metrics_bytes = metrics_->size();
  const bool is_best = newest_is_best_ || data_.validation_images == 0 || progress_.step == 0;
  result_.weights_sha256 = save_checkpoint(options_.run, runtime_, trainer_->model(), progress_, facts_,
                                           is_best, config_.checkpoint.keep);
  saved_step_ = progress_.step;
  newest_is_best_ = false;
}

// Which labels the net may see; the validation images keep theirs.
void choose_labels(TrainingData& data, const Config& config) {
  const int64_t known = config.classifier.classes;
  data.classes = known > 0 ? known : count_classes(data.set, config.data.path);
  require_classes(data.set, data.classes, config.data.path);
  if (config.data.labels == 0) return;
  std::vector<int32_t>& labels = data.set.labels;
  const auto end = labels.begin() + data.training().count();
  const std::vector<int32_t> all(labels.begin(), end);
  std::fill(labels.begin(), end, -1);
  const std::vector<int64_t> places =
      draw_labelled(all, data.classes, config.data.labels, uint64_t(config.seed), /*draw=*/0);
  for (const int64_t place : places) labels[size_t(place)] = all[size_t(place)];
  if (config.loss.reconstruction_weight == 0.0) data.labelled = places;
}

}  // namespace

Config with_classes(Config config, const TrainingData& data) {
  if (config.loss.classifier_weight > 0.0 && config.classifier.classes == 0)
    config.classifier.classes = data.classes;
  return config;
}

TrainingData load_training_data(const Config& config) {
  TrainingData data{.set = load_image_set(config.data.kind, config.data.path, Split::train),
                    .validation_images = config.data.validation};
  if (config.data.validation >= data.set.count)
    throw Error(ErrorKind::usage,
                fmt::format("data.validation = {} leaves none of the {} images to train on",
                            config.data.validation, data.set.count),
                "lower data.validation", "data.validation");
  if (config.data.shift >= std::min(data.set.height, data.set.width))
    throw Error(ErrorKind::usage,
                fmt::format("data.shift = {} shifts images of {}x{} out of sight", config.data.shift,
                            data.set.height, data.set.width),
                "lower data.shift", "data.shift");
  if (config.loss.classifier_weight > 0.0) choose_labels(data, config);
  return data;
}

MemoryPlan plan_memory(const Config& given, const TrainingData& data, const Runtime& runtime) {
  const Config config = with_classes(given, data);
  const ImageShape shape{data.set.height, data.set.width, data.set.channels};
  Model model(config, shape, config.train.batch_size, data.training().count(), Mode::training);
  std::string parts;
  int64_t total = 0;
  for (const auto& [name, bytes] : model.memory_budget(runtime.device())) {
    parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", name, format_bytes(bytes));
    total += bytes;
  }
  const int64_t available = runtime.available_device_bytes(),
                largest = std::min(
                    data.training().count(),
                    largest_batch(config, shape, data.training().count(), runtime.device(), available));
  if (total > available)
    throw Error(ErrorKind::resources,
                fmt::format("the run needs {} of memory, and {} are available", format_bytes(total),
                            format_bytes(available)),
                largest > 0 ? fmt::format("a train.batch_size of {} fits", largest)
                            : "use a smaller model.hidden or codebook",
                "train.batch_size");
  const Residency residency = choose_residency(data.training(), runtime.device(), available - total);
  return {
      .lines = {fmt::format("model: {} parameters", model.parameters().count()),
                fmt::format("memory: {} ({})", format_bytes(total), parts),
                fmt::format("largest batch in {} of available memory: {}", format_bytes(available), largest),
                describe(residency, data.training(), runtime.device(), available - total)},
      .residency = residency};
}

TrainResult train(const TrainOptions& options, TrainObserver& observer) {
  return Training(options, observer).run();
}

}  // namespace vqlab
