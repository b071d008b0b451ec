#include "command.hpp"
#include "experiment_run.hpp"

namespace vqlab {
namespace {

class SweepCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("config", options_.config, true, "configuration (TOML) that every member starts from");
    o.list("-a,--axis", options_.axes,
           "KEY=V1,V2,...: values of a key; a:b:xF and a:b:+S are ranges, [1,2] is one value; repeatable, "
           "axes multiply");
    o.option("-o,--output", run_.output, "directory of the runs and of report.{md,json,html}");
    o.option("seeds", seeds_,
             "seeds of each member, for example 0,1,2; that of the configuration if not given");
    o.list("set", options_.overrides, "KEY=VALUE for all members; repeatable");
    o.flag("recognise", options_.recognition, "measure what the features are worth for recognition too");
    o.list("chart", charts_, "X,Y: a chart of a figure over a figure or an axis's key; repeatable");
    o.option("levels", levels_, "levels of validation MSE: how many seconds until each");
    o.flag("dry-run", run_.dry_run, "list the members, do nothing");
  }

  CommandResult run(const CommonOptions& common) override {
    for (const std::string& text : common_overrides(common)) options_.overrides.push_back(text);
    if (!seeds_.empty()) options_.seeds = parse_seeds(seeds_);
    options_.mse_levels = parse_numbers(levels_, "--levels");
    options_.charts = charts_;
    return run_and_report(plan_sweep(options_), run_, common);
  }

 private:
  SweepOptions options_;
  ExperimentRun run_;
  std::vector<std::string> charts_;
  std::string seeds_, levels_ = kMseLevels;
};

}  // namespace

extern const CommandEntry command_sweep;
const CommandEntry command_sweep{
    "sweep", "trains every combination of some settings and writes one report",
    []() -> std::unique_ptr<Command> { return std::make_unique<SweepCommand>(); }};

}  // namespace vqlab
