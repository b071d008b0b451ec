// Several runs and what they came to: DIR/experiment.json, DIR/runs/NAME-seedN/{a run directory,
// result.json}. What is done is not done again.
#pragma once

#include <string>
#include <vector>

#include "engine/training.hpp"
#include "plan.hpp"

namespace vqlab {

struct ExperimentOptions {
  std::string directory;
  std::string command;             // for command.txt of the runs
  Trust* trust = nullptr;          // as in TrainOptions
  std::string tuning_folder = "";  // likewise
};

enum class MemberState { fresh, begun, done };
const char* member_state_text(MemberState state);

// What became of a member.
struct MemberOutcome {
  Json result;          // of result.json; null if it is not done
  std::string failure;  // why it failed, else empty
};

struct ExperimentOutcome {
  std::vector<MemberOutcome> members;  // in the plan's order
  int signal = 0;                      // that stopped it, if one did
};

// How far each member is. Changes nothing. Throws Error(usage) if the directory holds something else: files
// that are not ours, an experiment of another kind, or a run of another configuration (which key, and where).
std::vector<MemberState> look_at(const ExperimentPlan& plan, const std::string& directory);

// Trains what is not trained, evaluates on the whole test split, and recognises as planned; each result is
// written at once. A member that diverges is noted and the next one follows; every other error is thrown,
// with what was done kept. After SIGINT or SIGTERM it stops at the next good place.
ExperimentOutcome run_experiment(const ExperimentPlan& plan, const ExperimentOptions& options,
                                 TrainObserver& observer);

}  // namespace vqlab
