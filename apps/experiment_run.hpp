// What the commands that run an experiment share.
#pragma once

#include <string>

#include "command.hpp"
#include "engine/experiment/plan.hpp"

namespace vqlab {

// The levels of validation MSE whose seconds are reported, unless others are asked for.
inline constexpr const char* kMseLevels = "0.02,0.01,0.0075";

struct ExperimentRun {
  std::string output;  // directory
  bool dry_run = false;
};

// Overrides of the configurations by --device and --threads.
std::vector<std::string> common_overrides(const CommonOptions& common);

// Lists the members, or runs the experiment and writes its report.
CommandResult run_and_report(const ExperimentPlan& plan, const ExperimentRun& run,
                             const CommonOptions& common);

}  // namespace vqlab
