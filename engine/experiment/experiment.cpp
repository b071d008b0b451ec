#include "experiment.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "engine/environment.hpp"
#include "engine/io/file.hpp"
#include "engine/stop_signals.hpp"
#include "engine/trust.hpp"
#include "figures.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kResultFormat = 1;
constexpr int64_t kMaxResultBytes = int64_t(64) << 20;

[[noreturn]] void fail(const std::string& what, const std::string& hint, const std::string& where) {
  throw Error(ErrorKind::usage, what, hint, where);
}

// Thrown through recognise() to leave it early.
struct Stopped {};

void stop_if_asked() {
  if (StopSignals::caught()) throw Stopped();
}

void write_whole(const std::string& path, const std::string& text) {
  write_file_durably(path + ".tmp", text);
  rename_durably(path + ".tmp", path);
}

Json jobs_json(const Member& member) {
  Json jobs = Json::array();
  for (const RecognitionJob& job : member.recognition) jobs.push_back(job.to_json());
  return jobs;
}

// The result of a member if there is one that answers what is asked now, else null.
Json read_result(const Member& member, const std::string& run) {
  const std::string path = run + "/result.json";
  if (!fs::exists(path)) return {};
  try {
    const Json result = parse_json(read_file(path, kMaxResultBytes), path);
    const bool answers = result.at("format").as_integer() == kResultFormat &&
                         result.at("recognition").dump() == jobs_json(member).dump();
    return answers ? result : Json();
  } catch (const Error&) {
    return {};  // unreadable: measured again
  }
}

// The training figures of a run, from its metrics: they are of all calls that trained it.
Json training_figures(const std::string& run, int64_t batch) {
  Json figures = Json::object(), evaluations = Json::array();
  double seconds = 0.0;
  int64_t step = 0;
  std::ifstream file(run + "/metrics.jsonl");
  for (std::string text; std::getline(file, text);) {
    const Json line = parse_json(text, run + "/metrics.jsonl");
    if (line.at("kind").as_string() == "step") {
      step = line.at("step").as_integer();
      if (const Json* total = line.find("seconds")) seconds = total->as_number();
    } else if (line.at("kind").as_string() == "evaluation") {
      Json evaluation = Json::object();
      evaluation["step"] = line.at("step");
      evaluation["seconds"] = line.at("step").as_integer() == step && seconds > 0.0 ? Json(seconds) : Json();
      evaluation["mse"] = line.at("mse");
      if (const Json* accuracy = line.find("accuracy")) evaluation["accuracy"] = *accuracy;
      evaluations.push_back(evaluation);
    }
  }
  figures["seconds"] = seconds > 0.0 ? Json(seconds) : Json();
  figures["images_per_second"] = seconds > 0.0 ? Json(double(step * batch) / seconds) : Json();
  figures["evaluations"] = evaluations;
  return figures;
}

// Hands the progress of training on, without what each run says about the machine.
class Quieter : public TrainObserver {
 public:
  explicit Quieter(TrainObserver& observer) : observer_(observer) {}
  void note(const std::string&) override {}
  void warning(const std::string& line) override { observer_.warning(line); }
  void on_step(const StepReport& report, int64_t end_step, double images_per_second,
               double eta_seconds) override {
    observer_.on_step(report, end_step, images_per_second, eta_seconds);
  }
  void on_evaluation(int64_t epoch, const Evaluation& evaluation, bool is_best) override {
    observer_.on_evaluation(epoch, evaluation, is_best);
  }

 private:
  TrainObserver& observer_;
};

class Experiment {
 public:
  Experiment(const ExperimentPlan& plan, const ExperimentOptions& options, TrainObserver& observer)
      : plan_(plan), options_(options), observer_(observer), states_(look_at(plan, options.directory)) {}
  ExperimentOutcome run();

 private:
  std::string run_of(const Member& member) const { return options_.directory + "/" + member.directory(); }
  void claim_directory() const;
  Json make_result(const Member& member, MemberState state);
  TrainResult train_member(const Member& member, MemberState state);
  Json measure(const Member& member, const TrainResult& trained);
  std::vector<RecognitionRow> recognise_what_can_be(TrainedModel& model, RecognitionOptions options,
                                                    const ProgressSink& progress);
  Json recognise_member(const Member& member);
  std::unique_ptr<TrainedModel> load(const Member& member, const std::string& checkpoint) const;

  const ExperimentPlan& plan_;
  const ExperimentOptions& options_;
  TrainObserver& observer_;
  const std::vector<MemberState> states_;
};

void Experiment::claim_directory() const {
  std::error_code error;
  fs::create_directories(options_.directory + "/runs", error);
  if (error)
    throw Error(error == std::errc::no_space_on_device ? ErrorKind::resources : ErrorKind::usage,
                "cannot create the output directory: " + error.message(), "choose an -o in a writable place",
                options_.directory);
  Json json = Json::object();
  json["experiment"] = plan_.kind;
  json["title"] = plan_.title;
  json["vqlab"] = version();
  write_whole(options_.directory + "/experiment.json", json.dump(2) + "\n");
}

ExperimentOutcome Experiment::run() {
  const StopSignals signals;
  claim_directory();
  ExperimentOutcome outcome;
  outcome.members.resize(plan_.members.size());
  for (size_t i = 0; i < plan_.members.size(); ++i) {
    const Member& member = plan_.members[i];
    if (states_[i] == MemberState::done) outcome.members[i].result = read_result(member, run_of(member));
  }
  for (size_t i = 0; i < plan_.members.size() && !StopSignals::caught(); ++i) {
    const Member& member = plan_.members[i];
    observer_.note(fmt::format("[{}/{}] {}, seed {}: {}", i + 1, plan_.members.size(), member.name,
                               member.seed, member_state_text(states_[i])));
    if (states_[i] == MemberState::done) continue;
    try {
      outcome.members[i].result = make_result(member, states_[i]);
    } catch (const Stopped&) {
      break;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::failed) throw;
      outcome.members[i].failure = error.what();
      observer_.warning(fmt::format("{}, seed {} failed: {}", member.name, member.seed, error.what()));
    }
  }
  outcome.signal = StopSignals::caught();
  return outcome;
}

Json Experiment::make_result(const Member& member, MemberState state) {
  const TrainResult trained = train_member(member, state);
  stop_if_asked();
  const Json result = measure(member, trained);
  write_whole(run_of(member) + "/result.json", result.dump(2) + "\n");
  return result;
}

TrainResult Experiment::train_member(const Member& member, MemberState state) {
  TrainOptions train_options{.config = member.config,
                             .run = run_of(member),
                             .access = state == MemberState::fresh ? RunAccess::create : RunAccess::resume,
                             .max_steps = {},
                             .command = options_.command,
                             .trust = options_.trust,
                             .tuning_folder = options_.tuning_folder};
  Quieter quieter(observer_);
  return train(train_options, quieter);
}

std::unique_ptr<TrainedModel> Experiment::load(const Member& member, const std::string& checkpoint) const {
  return std::make_unique<TrainedModel>(
      run_of(member), checkpoint, member.config.device, member.config.threads, options_.trust,
      [this](const std::string& line) { observer_.warning(line); }, options_.tuning_folder);
}

Json Experiment::measure(const Member& member, const TrainResult& trained) {
  const std::string run = run_of(member);
  observer_.note("  evaluating on the test split");
  const auto model = load(member, "last");
  const NamedSplit test = load_split(model->config(), "test", model->facts());
  const Evaluation e = evaluate(model->model(), model->runtime(), test.range(), model->facts().variance);
  Json result = Json::object();
  result["format"] = kResultFormat;
  result["vqlab"] = version();
  result["name"] = member.name;
  result["seed"] = member.seed;
  result["config"] = to_toml(member.config);
  result["device"] = trained.device;
  result["threads"] = int64_t(worker_count());
  result["steps"] = trained.steps;
  result["epochs"] = trained.epochs;
  result["stopped_by"] = trained.stopped_by;
  result["weights_sha256"] = trained.weights_sha256;
  result["training_images"] = model->facts().training_images;
  result["train"] = training_figures(run, member.config.train.batch_size);
  result["test"] = e.to_json();
  const Model& m = model->model();
  if (e.codebook_size == 0)
    result["latent_floats"] = m.code_height() * m.code_width() * member.config.quantizer.dim;
  result["recognition"] = jobs_json(member);
  result["rows"] = recognise_member(member);
  return result;
}

// Without the budgets that the classes of the set cannot fill, greatest first. With none left it throws what
// recognise() throws.
std::vector<RecognitionRow> Experiment::recognise_what_can_be(TrainedModel& model, RecognitionOptions options,
                                                              const ProgressSink& progress) {
  for (;;) try {
      return recognise(model, options, progress);
    } catch (const Error& error) {
      const auto greatest = std::max_element(options.labels.begin(), options.labels.end());
      if (error.kind() != ErrorKind::usage || *greatest == 0 || options.labels.size() == 1) throw;
      observer_.warning(fmt::format("no accuracy for {} labels: {}", *greatest, error.what()));
      options.labels.erase(greatest);
    }
}

Json Experiment::recognise_member(const Member& member) {
  Json rows = Json::array();
  std::string loaded;
  std::unique_ptr<TrainedModel> model;
  for (const RecognitionJob& job : member.recognition) {
    if (loaded != job.checkpoint) model = load(member, loaded = job.checkpoint);
    RecognitionOptions options = job.options;
    // A set that is too small for a budget is no reason to lose the others.
    const int64_t images = model->facts().training_images;
    std::erase_if(options.labels, [&](int64_t labels) {
      if (labels > images)
        observer_.note(fmt::format("  no {} labels: there are {} training images", labels, images));
      return labels > images;
    });
    if (options.labels.empty()) continue;
    observer_.note(fmt::format("  recognising with {}: {}", fmt::join(options.features, " and "),
                               fmt::join(options.heads, " and ")));
    const auto progress = [&](const std::string& line) {
      stop_if_asked();
      observer_.note("    " + line);
    };
    for (const RecognitionRow& row : recognise_what_can_be(*model, options, progress)) {
      Json json = Json::object();
      json["group"] = job.group.empty() ? member.name : job.group;
      const Json figures = row.to_json();
      for (const auto& [key, value] : figures.members()) json[key] = value;
      rows.push_back(json);
    }
    stop_if_asked();
  }
  return rows;
}

// The directory itself: new, empty, or one of this kind of experiment.
void require_ours(const ExperimentPlan& plan, const std::string& directory) {
  std::error_code error;
  if (!fs::exists(directory)) return;
  if (!fs::is_directory(directory))
    fail("the output directory exists and is a file", "choose another -o", directory);
  const std::string path = directory + "/experiment.json";
  if (!fs::exists(path)) {
    if (fs::is_empty(directory, error)) return;
    fail("the output directory holds other files, and no experiment", "choose another -o, or empty it",
         directory);
  }
  const std::string kind = parse_json(read_file(path, kMaxResultBytes), path).at("experiment").as_string();
  if (kind != plan.kind)
    fail(fmt::format("the output directory holds an experiment of the kind `{}`, not `{}`", kind, plan.kind),
         "choose another -o", directory);
}

}  // namespace

const char* member_state_text(MemberState state) {
  switch (state) {
    case MemberState::fresh:
      return "to be trained";
    case MemberState::begun:
      return "goes on";
    case MemberState::done:
      return "done already";
  }
  return "";
}

std::vector<MemberState> look_at(const ExperimentPlan& plan, const std::string& directory) {
  require_ours(plan, directory);
  std::vector<MemberState> states;
  for (const Member& member : plan.members) {
    const std::string run = directory + "/" + member.directory();
    if (!fs::exists(run + "/config.toml")) {
      states.push_back(MemberState::fresh);
      continue;
    }
    std::vector<std::string> free_keys = {"device", "threads"};
    if (member.config.classifier.classes == 0) free_keys.push_back("classifier.classes");  // the data's
    const auto keys = differing_keys(load_run_config(run), member.config, free_keys);
    if (!keys.empty())
      fail(fmt::format("{} differs from the configuration of the run that is there", fmt::join(keys, ", ")),
           "choose another -o, or move that run away", run);
    states.push_back(read_result(member, run).is_null() ? MemberState::begun : MemberState::done);
  }
  return states;
}

ExperimentOutcome run_experiment(const ExperimentPlan& plan, const ExperimentOptions& options,
                                 TrainObserver& observer) {
  return Experiment(plan, options, observer).run();
}

}  // namespace vqlab
