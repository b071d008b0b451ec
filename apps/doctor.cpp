#include <cstdio>

#include "command.hpp"
#include "doctor_plans.hpp"
#include "engine/environment.hpp"
#include "engine/quantizer.hpp"
#include "engine/variant_case.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

constexpr VariantShape kProblem{257, 130, 19};

struct Verdict {
  bool trusted, failed;
  std::string why;
};

// Whether a variant solves the small problem as the definition does. `problem` is null where its device
// cannot be used.
Verdict self_test(const VariantInfo& variant, VariantCase* problem) {
  if (problem == nullptr)
    return {false, false, cuda_problem().empty() ? "not run: --device cpu" : "not run: no CUDA device"};
  if (!problem->supports(variant.name)) return {false, false, "does not run on this machine"};
  try {
    problem->run(variant.name);
    const int64_t wrong = problem->wrong();
    if (wrong > 0)
      return {false, true, fmt::format("{} of {} rows are wrong", wrong, problem->rows_checked())};
  } catch (const Error& error) {
    return {false, true, fmt::format("fails: {}", error.what())};
  }
  return {true, false,
          variant.exact ? "equals the definition on hard data" : "right, but in no fixed order of sums"};
}

Json to_json(const VariantOp& op, const VariantInfo& variant, const Verdict& verdict) {
  Json entry = Json::object();
  entry["name"] = fmt::format("{} {}", op.name, variant.name);
  entry["device"] = device_text(variant.device);
  entry["trusted"] = verdict.trusted;
  entry["why"] = verdict.why;
  return entry;
}

class DoctorCommand : public Command {
 public:
  void declare(Options& o) override {
    o.option("plans", plans_, "CONFIG: show only what cuDNN would use for each of its convolutions");
    o.list("set", overrides_, "with --plans: KEY=VALUE instead of the configuration's");
    o.option("card", card_, "with --plans: a100, h100 or h200, which need not be here");
  }

  CommandResult run(const CommonOptions& common) override {
    if (!plans_.empty() || !card_.empty()) return show_plans(plans_, overrides_, card_, common);
    const Runtime runtime(common.device, int(common.threads));
    Json json = environment(runtime);
    json["cuda_problem"] = runtime.device() == Device::cuda ? "" : cuda_problem();
    json["cuda_devices"] = Json::array();
    for (const std::string& device : cuda_devices()) json["cuda_devices"].push_back(device);
    if (runtime.device() == Device::cpu) {  // else they are there
      const Json found = find_cuda_libraries();
      for (const Json& library : found.items()) json["libraries"].push_back(library);
    }
    json["variants"] = Json::array();
    bool failed = test_variants(Device::cpu, runtime, json["variants"]);
    failed = test_variants(Device::cuda, runtime, json["variants"]) || failed;
    if (!common.json) print(json);
    return {.json = json, .exit_code = failed ? int(ErrorKind::verification) : 0};
  }

 private:
  // Tests the variants of one device; whether one failed.
  static bool test_variants(Device device, const Runtime& in_use, Json& list) {
    const bool usable = device == Device::cpu || in_use.device() == Device::cuda;
    const Runtime runtime(usable ? device_text(device) : "cpu", worker_count());
    bool any_failed = false;
    for (const VariantOp* op : variant_ops()) {
      if (op->variants(device).empty()) continue;
      std::unique_ptr<VariantCase> problem;
      if (usable) problem = op->make(runtime, kProblem, CaseData::hard, kProblem.N);
      for (const VariantInfo& variant : op->variants(device)) {
        const Verdict verdict = self_test(variant, problem.get());
        list.push_back(to_json(*op, variant, verdict));
        any_failed = any_failed || verdict.failed;
      }
    }
    return any_failed;
  }

  static void print(const Json& json) {
    for (const auto& [key, value] : json.members())
      if (value.is_string() && !value.as_string().empty())
        std::printf("%-12s %s\n", key.c_str(), value.as_string().c_str());
    for (const Json& device : json.at("cuda_devices").items())
      std::printf("%-12s %s\n", "CUDA device", device.as_string().c_str());
    for (const Json& library : json.at("libraries").items()) print_library(library);
    for (const Json& variant : json.at("variants").items())
      std::printf("%-12s %-26s %-4s %s: %s\n", "variant", variant.at("name").as_string().c_str(),
                  variant.at("device").as_string().c_str(),
                  variant.at("trusted").as_bool() ? "ok" : "not used", variant.at("why").as_string().c_str());
    for (const QuantizerEntry* entry : quantizers())
      std::printf("%-12s %-26s %s\n", "quantizer", std::string(entry->name).c_str(),
                  std::string(entry->idea).c_str());
  }

  static void print_library(const Json& library) {
    const Json *path = library.find("path"), *problem = library.find("problem");
    std::string line = library.at("name").as_string() + " " + library.at("version").as_string();
    if (path != nullptr) line += "  " + path->as_string();
    if (problem != nullptr) line += " not found: " + problem->as_string();
    std::printf("%-12s %s\n", "library", line.c_str());
  }

  std::string plans_, card_;
  std::vector<std::string> overrides_;
};

}  // namespace

extern const CommandEntry command_doctor;
const CommandEntry command_doctor{
    "doctor", "tells about machine, libraries and kernel variants",
    []() -> std::unique_ptr<Command> { return std::make_unique<DoctorCommand>(); }};

}  // namespace vqlab
