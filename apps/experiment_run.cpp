#include "experiment_run.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "console.hpp"
#include "engine/experiment/report.hpp"
#include "engine/trust.hpp"

namespace vqlab {
namespace {

CommandResult list_members(const ExperimentPlan& plan, const std::string& output,
                           const CommonOptions& common) {
  const std::vector<MemberState> states = look_at(plan, output);
  Json json = Json::object();
  json["dry_run"] = Json::array();
  for (size_t i = 0; i < plan.members.size(); ++i) {
    const Member& member = plan.members[i];
    Json entry = Json::object(), overrides = Json::array();
    for (const std::string& text : member.overrides) overrides.push_back(text);
    entry["name"] = member.name;
    entry["seed"] = member.seed;
    entry["run"] = output + "/" + member.directory();
    entry["overrides"] = overrides;
    entry["state"] = member_state_text(states[i]);
    json["dry_run"].push_back(entry);
    if (!common.json)
      std::printf("%s, seed %lld: %s (%s)\n", member.name.c_str(), static_cast<long long>(member.seed),
                  member_state_text(states[i]), fmt::format("{}", fmt::join(member.overrides, " ")).c_str());
  }
  return {.json = json};
}

}  // namespace

std::vector<std::string> common_overrides(const CommonOptions& common) {
  std::vector<std::string> overrides;
  if (common.device_given) overrides.push_back(fmt::format("device=\"{}\"", common.device));
  if (common.threads_given) overrides.push_back(fmt::format("threads={}", common.threads));
  return overrides;
}

CommandResult run_and_report(const ExperimentPlan& plan, const ExperimentRun& run,
                             const CommonOptions& common) {
  if (run.output.empty())
    throw Error(ErrorKind::usage, "an experiment needs a directory for its runs and its report",
                "pass -o DIR; the same one later goes on where it stopped", "-o");
  if (run.dry_run) return list_members(plan, run.output, common);
  const std::unique_ptr<Trust> trust = trust_of_this_program(plan.members.at(0).config.device);
  const ExperimentOptions options{.directory = run.output,
                                  .command = common.command_line,
                                  .trust = trust.get(),
                                  .tuning_folder = cache_folder()};
  Console console(common.quiet);
  const ExperimentOutcome outcome = run_experiment(plan, options, console);
  const Json report = summarise(plan, outcome, options);
  write_report(plan, report, run.output);
  if (!common.json) {
    std::printf("%s\n", final_table(report).c_str());
    std::printf("%s/report.md, report.html and report.json%s\n", run.output.c_str(),
                outcome.signal ? "; stopped, the same command goes on" : "");
  }
  CommandResult result{.json = report};
  for (const MemberOutcome& member : outcome.members)
    if (!member.failure.empty()) result.exit_code = int(ErrorKind::failed);
  if (outcome.signal) result.exit_code = 128 + outcome.signal;
  return result;
}

}  // namespace vqlab
