#include <fmt/format.h>

#include <sstream>

#include "command.hpp"
#include "experiment_run.hpp"

namespace vqlab {
namespace {

class ExperimentCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional(
        "name", name_, true,
        "recognition: what the features of each kind of model are worth; rate_distortion: AE, VQ and "
        "FSQ by bits per image");
    o.option("data", options_.data, "fmnist, or a directory with IDX or CIFAR-10 files");
    o.option("-o,--output", run_.output, "directory of the runs and of report.{md,json,html}");
    o.option("epochs", options_.epochs, 1, 1000000, "of every member");
    o.option("seeds", seeds_, "seeds of each member");
    o.list("set", options_.overrides, "KEY=VALUE for all members; repeatable");
    o.option("members", members_, "names of members, with commas; all if not given");
    o.option("levels", levels_, "levels of validation MSE: how many seconds until each");
    o.flag("quick", options_.quick, "a rehearsal: one epoch, one seed, at most 1000 labels");
    o.flag("dry-run", run_.dry_run, "list the members, do nothing");
  }

  CommandResult run(const CommonOptions& common) override {
    if (name_ != "recognition" && name_ != "rate_distortion")
      throw Error(ErrorKind::usage, fmt::format("there is no experiment {}", name_),
                  "the experiments are: recognition, rate_distortion; own settings are for `vqlab sweep`",
                  "command line");
    for (const std::string& text : common_overrides(common)) options_.overrides.push_back(text);
    options_.seeds = parse_seeds(seeds_);
    options_.mse_levels = parse_numbers(levels_, "--levels");
    std::istringstream members(members_);
    for (std::string member; std::getline(members, member, ',');) options_.members.push_back(member);
    return run_and_report(
        name_ == "recognition" ? plan_recognition(options_) : plan_rate_distortion(options_), run_, common);
  }

 private:
  PreparedOptions options_;
  ExperimentRun run_;
  std::string name_, seeds_ = "0,1,2", levels_ = kMseLevels, members_;
};

}  // namespace

extern const CommandEntry command_experiment;
const CommandEntry command_experiment{
    "experiment", "runs a prepared experiment of several models and writes one report",
    []() -> std::unique_ptr<Command> { return std::make_unique<ExperimentCommand>(); }};

}  // namespace vqlab
