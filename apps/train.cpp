#include <fmt/core.h>

#include <cstdio>

#include "command.hpp"
#include "console.hpp"
#include "engine/training.hpp"
#include "engine/trust.hpp"
#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

Error usage(const std::string& what, const std::string& hint) {
  return Error(ErrorKind::usage, what, hint, "command line");
}

class TrainCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("config", config_path_, false, "configuration (TOML)");
    o.option("run", run_, "run directory (default: runs/<name>-<time>-<hex>)");
    o.option("resume", resume_, "continue this run, bit for bit as if it had not stopped");
    o.list("set", overrides_, "KEY=VALUE, overrides a key of the configuration; repeatable");
    o.option("seed", seed_, -1, int64_t(9e15), "overrides `seed` of the configuration; -1 = do not");
    o.option("max-steps", max_steps_, 0, int64_t(9e15),
             "stop after so many steps, counted from step 0; 0 = all epochs");
    o.flag("force", force_, "replace the run directory if it exists");
    o.flag("no-graph", no_graph_, "on a GPU: launch ops one by one, not the step as one CUDA graph");
    o.flag("new-kernels", new_kernels_,
           "with --resume: choose kernel variants anew, also where that changes bits");
    o.flag("dry-run", dry_run_, "check everything, print the memory budget, train nothing");
    o.flag("print-config", print_config_, "print the configuration in effect and stop");
  }

  CommandResult run(const CommonOptions& common) override {
    const TrainOptions options = make_options(common);
    if (print_config_) {
      if (!common.json) std::printf("%s", to_toml(options.config).c_str());
      Json json = Json::object();
      json["config"] = to_toml(options.config);
      return {.json = json};
    }
    if (dry_run_) return dry_run(options, common);
    Console console(common.quiet);
    return present(train_trusting(options, console), common);
  }

 private:
  static TrainResult train_trusting(TrainOptions options, Console& console) {
    const std::unique_ptr<Trust> trust = trust_of_this_program(options.config.device);
    options.trust = trust.get();
    options.tuning_folder = cache_folder();
    return train(options, console);
  }

  TrainOptions make_options(const CommonOptions& common) {
    TrainOptions options;
    options.command = common.command_line;
    if (max_steps_ > 0) options.max_steps = max_steps_;
    if (!resume_.empty()) {
      if (!run_.empty() || force_)
        throw usage("--resume continues a run in its own directory", "leave out --run and --force");
      options.run = resume_;
      options.access = RunAccess::resume;
      options.config = load_run_config(resume_);
    } else if (config_path_.empty()) {
      throw usage("train needs a configuration or --resume RUN",
                  "for example vqlab train apps/configs/fmnist-s.toml");
    }
    std::vector<std::string> overrides = overrides_;
    if (seed_ >= 0) overrides.push_back(fmt::format("seed={}", seed_));
    if (common.device_given) overrides.push_back(fmt::format("device=\"{}\"", common.device));
    if (common.threads_given) overrides.push_back(fmt::format("threads={}", common.threads));
    const Config wanted =
        config_path_.empty() ? load_run_config(resume_, overrides) : load_config(config_path_, overrides);
    if (!resume_.empty()) {
      const auto keys = differing_keys(options.config, wanted, {"device", "threads"});
      if (!keys.empty())
        throw Error(ErrorKind::usage,
                    fmt::format("{} differs from the configuration that the run started with", keys[0]),
                    "a resumed run may change device and threads only; start a new run for the rest",
                    resume_);
    }
    options.config = wanted;
    if (options.run.empty()) options.run = run_.empty() ? default_run_path(wanted.name) : run_;
    if (force_) options.access = RunAccess::replace;
    if (new_kernels_ && resume_.empty())
      throw usage("--new-kernels is about a run that is resumed", "leave it out");
    options.new_kernels = new_kernels_;
    options.graph = !no_graph_;
    return options;
  }

  static CommandResult dry_run(const TrainOptions& options, const CommonOptions& common) {
    const Runtime runtime(options.config.device, int(options.config.threads));
    const TrainingData data = load_training_data(options.config);
    std::vector<std::string> lines = plan_memory(options.config, data, runtime).lines;
    lines.insert(lines.begin(), runtime.note());
    Json json = Json::object();
    json["dry_run"] = Json::array();
    for (const std::string& line : lines) {
      json["dry_run"].push_back(line);
      if (!common.json) std::printf("%s\n", line.c_str());
    }
    return {.json = json};
  }

  static CommandResult present(const TrainResult& r, const CommonOptions& common) {
    Json json = Json::object();
    json["run"] = r.run;
    json["steps"] = r.steps;
    json["epochs"] = r.epochs;
    json["seconds"] = r.seconds;
    json["images_per_second"] = r.images_per_second;
    json["peak_bytes"] = r.peak_bytes;
    json["device"] = r.device;
    json["graph"] = r.graph;
    json["weights_sha256"] = r.weights_sha256;
    Json& final_step = json["final"];
    if (r.final_step) {
      final_step["loss"] = r.final_step->loss;
      final_step["reconstruction"] = r.final_step->reconstruction;
      final_step["commitment"] = r.final_step->commitment;
    }
    json["stopped_by"] = r.stopped_by;
    if (!common.json)
      std::printf("%s: %lld steps (%.2f epochs) in %s, %.0f img/s, stopped by %s\n", r.run.c_str(),
                  static_cast<long long>(r.steps), r.epochs, format_seconds(r.seconds).c_str(),
                  r.images_per_second, r.stopped_by.c_str());
    return {.json = json, .exit_code = r.signal ? 128 + r.signal : 0};
  }

  std::string config_path_, run_, resume_;
  std::vector<std::string> overrides_;
  int64_t seed_ = -1, max_steps_ = 0;
  bool force_ = false, new_kernels_ = false, no_graph_ = false, dry_run_ = false, print_config_ = false;
};

}  // namespace

extern const CommandEntry command_train;
const CommandEntry command_train{
    "train", "trains a model and evaluates it on the validation split",
    []() -> std::unique_ptr<Command> { return std::make_unique<TrainCommand>(); }};

}  // namespace vqlab
