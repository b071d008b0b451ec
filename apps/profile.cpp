#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "command.hpp"
#include "console.hpp"
#include "engine/ceilings.hpp"
#include "engine/step_profile.hpp"
#include "engine/trust.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

constexpr double kCeilingSeconds = 0.5;  // for each yardstick
constexpr double kLeastShare = 0.002;    // of the step; what is less is one line together

// "20:39"
void parse_steps(const std::string& text, int64_t& first, int64_t& last) {
  const char *begin = text.data(), *end = begin + text.size();
  const auto [colon, first_error] = std::from_chars(begin, end, first);
  if (first_error == std::errc() && colon != end && *colon == ':') {
    const auto [rest, last_error] = std::from_chars(colon + 1, end, last);
    if (last_error == std::errc() && rest == end) return;
  }
  throw Error(ErrorKind::usage, fmt::format("'{}' are no steps A:B", text),
              "the first and the last of them, counted from 1, for example --steps 20:39", "--steps");
}

class ProfileCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("config", target_, true, "configuration (TOML), or a run, which is gone on from");
    o.option("steps", steps_, "A:B, the first and the last step to profile, counted from 1");
    o.list("set", overrides_, "KEY=VALUE, overrides a key of the configuration; repeatable");
    o.flag("capture", capture_,
           "time nothing: name rooms and ops (NVTX) and call cudaProfilerStart and -Stop for nsys or ncu");
    o.flag("graph", graph_, "with --capture: launch the step as one CUDA graph");
  }

  CommandResult run(const CommonOptions& common) override {
    ProfileOptions options;
    parse_steps(steps_, options.first, options.last);
    std::vector<std::string> overrides = overrides_;
    if (common.device_given) overrides.push_back(fmt::format("device=\"{}\"", common.device));
    if (common.threads_given) overrides.push_back(fmt::format("threads={}", common.threads));
    if (std::filesystem::is_directory(target_)) options.run = target_;
    options.config =
        options.run.empty() ? load_config(target_, overrides) : load_run_config(target_, overrides);
    options.capture = capture_;
    options.graph = graph_;
    const std::unique_ptr<Trust> trust = trust_of_this_program(options.config.device);
    options.trust = trust.get();
    options.tuning_folder = cache_folder();
    Console console(common.quiet);
    const Runtime runtime(options.config.device, int(options.config.threads));
    console.note(runtime.note());
    const StepProfile profile = profile_step(options, runtime, console);
    const Ceilings ceilings = capture_ ? Ceilings() : measure_ceilings(runtime, kCeilingSeconds);
    if (!common.json) print(profile, ceilings);
    return {.json = to_json(profile, ceilings, runtime)};
  }

 private:
  void print(const StepProfile& profile, const Ceilings& ceilings) const;
  static void print_ops(const StepProfile& profile, const Ceilings& ceilings);
  Json to_json(const StepProfile& profile, const Ceilings& ceilings, const Runtime& runtime) const;

  std::string target_, steps_ = "20:39";
  std::vector<std::string> overrides_;
  bool capture_ = false, graph_ = false;
};

void ProfileCommand::print_ops(const StepProfile& profile, const Ceilings& ceilings) {
  size_t width = 8;
  for (const ProfiledOp& op : profile.ops) width = std::max(width, op.detail.size());
  fmt::print("{:24} {:13} {:{}} {:>5} {:>8} {:>6} {:>7} {:>8} {:>8}\n", "op", "room", "operands", width,
             "calls", "ms", "step", "GB/s", "TFLOP/s", "ceiling");
  double others_ms = 0.0;
  size_t others = 0;
  for (const ProfiledOp& op : profile.ops) {
    if (op.share < kLeastShare) {
      others_ms += op.ms;
      ++others;
      continue;
    }
    fmt::print("{:24} {:13} {:{}} {:5.4g} {:8.3f} {:5.1f}% {:7.2f} {:>8} {:7.0f}%\n", op.name, op.room,
               op.detail, width, op.calls, op.ms, 100.0 * op.share, op.gb_s(),
               op.cost.flop > 0.0 ? fmt::format("{:.4f}", op.tflop_s()) : "-",
               100.0 * op.share_of_ceiling(ceilings));
  }
  if (others > 0)
    fmt::print("{:{}} {:8.3f} {:5.1f}%\n", fmt::format("{} more rows", others), 24 + 1 + 13 + 1 + width + 6,
               others_ms, 100.0 * others_ms / profile.step_ms);
}

void ProfileCommand::print(const StepProfile& p, const Ceilings& ceilings) const {
  if (capture_) return fmt::print("steps {} to {} were captured\n", p.first, p.last);
  const std::string product = ceilings.product_tflop_s
                                  ? fmt::format("{:.4f} TFLOP/s", *ceilings.product_tflop_s)
                                  : fmt::format("not measured ({})", ceilings.product_problem);
  fmt::print("copy {:.1f} GB/s, fp32 product {}\n", ceilings.copy_gb_s, product);
  fmt::print("steps {} to {}: {:.3f} ms (median {:.3f}, least {:.3f})\n", p.first, p.last, p.step_ms,
             p.step_ms_median, p.step_ms_min);
  fmt::print("as many without a watch: {:.3f} ms (median {:.3f}, least {:.3f})\n", p.unwatched_ms,
             p.unwatched_ms_median, p.unwatched_ms_min);
  if (p.starts_codebook)
    fmt::print("in these steps the codebook waits for its first latents: later ones are different\n");
  fmt::print("\n");
  print_ops(p, ceilings);
  fmt::print("{:{}} {:8.3f} {:5.1f}%\n\n", "all ops", 44, p.ops_ms, 100.0 * p.ops_ms / p.step_ms);
  fmt::print("{:24} {:>8} {:>8} {:>10}\n", "room", "ms", "in ops", "elsewhere");
  double rooms_ms = 0.0;
  for (const ProfiledRoom& room : p.rooms) {
    fmt::print("{:24} {:8.3f} {:8.3f} {:10.3f}\n", room.name, room.ms, room.ops_ms, room.ms - room.ops_ms);
    rooms_ms += room.ms;
  }
  fmt::print("{:24} {:8.3f} {:8} {:10.3f}\n", "between rooms", p.step_ms - rooms_ms, "",
             p.step_ms - rooms_ms);
  fmt::print("{:24} {:8.3f} {:8.3f} {:10.3f}\n", "step", p.step_ms, p.ops_ms, p.step_ms - p.ops_ms);
}

Json ProfileCommand::to_json(const StepProfile& p, const Ceilings& ceilings, const Runtime& runtime) const {
  Json json = Json::object();
  json["device"] = runtime.device_name();
  json["note"] = runtime.note();
  json["threads"] = int64_t(worker_count());
  json["steps"] = Json::array();
  json["steps"].push_back(p.first);
  json["steps"].push_back(p.last);
  json["captured"] = capture_;
  json["ops"] = Json::array();
  if (capture_) return json;
  json["ceilings"]["copy_gb_s"] = ceilings.copy_gb_s;
  json["ceilings"]["product_tflop_s"] = ceilings.product_tflop_s ? Json(*ceilings.product_tflop_s) : Json();
  json["step_ms"] = p.step_ms;
  json["step_ms_median"] = p.step_ms_median;
  json["step_ms_min"] = p.step_ms_min;
  json["unwatched_ms"] = p.unwatched_ms;
  json["unwatched_ms_median"] = p.unwatched_ms_median;
  json["unwatched_ms_min"] = p.unwatched_ms_min;
  json["ops_ms"] = p.ops_ms;
  json["gap_ms"] = p.step_ms - p.ops_ms;
  json["final"]["loss"] = p.final_step.loss;
  json["final"]["reconstruction"] = p.final_step.reconstruction;
  json["final"]["commitment"] = p.final_step.commitment;
  json["starts_codebook"] = p.starts_codebook;
  for (const ProfiledOp& op : p.ops) {
    Json row = Json::object();
    row["name"] = op.name;
    row["room"] = op.room;
    row["operands"] = op.detail;
    row["calls"] = op.calls;
    row["ms"] = op.ms;
    row["ms_median"] = op.ms_median;
    row["ms_min"] = op.ms_min;
    row["share"] = op.share;
    row["gb_s"] = op.gb_s();
    row["tflop_s"] = op.cost.flop > 0.0 ? Json(op.tflop_s()) : Json();
    row["share_of_ceiling"] = op.share_of_ceiling(ceilings);
    json["ops"].push_back(row);
  }
  json["rooms"] = Json::array();
  for (const ProfiledRoom& room : p.rooms) {
    Json row = Json::object();
    row["name"] = room.name;
    row["ms"] = room.ms;
    row["ops_ms"] = room.ops_ms;
    json["rooms"].push_back(row);
  }
  return json;
}

}  // namespace

extern const CommandEntry command_profile;
const CommandEntry command_profile{
    "profile", "shows where the time of a training step goes, op by op, beside what the machine can do",
    []() -> std::unique_ptr<Command> { return std::make_unique<ProfileCommand>(); }};

}  // namespace vqlab
