#include <cstdio>

#include "command.hpp"
#include "compare_print.hpp"
#include "doctor_plans.hpp"
#include "engine/environment.hpp"
#include "engine/quantizer.hpp"
#include "engine/self_test.hpp"
#include "engine/trust.hpp"
#include "engine/tuning.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

Json to_json(const VariantOp& op, const VariantInfo& variant, bool trusted, const std::string& why) {
  Json entry = Json::object();
  entry["name"] = fmt::format("{} {}", op.name, variant.name);
  entry["device"] = device_text(variant.device);
  entry["trusted"] = trusted;
  entry["why"] = why;
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
    const Runtime cpu("cpu", worker_count());
    bool failed = list_variants(
        Device::cpu, json["variants"],
        [&](const VariantOp& op, const VariantInfo& variant) { return self_test(op, cpu, variant.name); });
    if (runtime.device() == Device::cuda) {
      const std::unique_ptr<Trust> trust = trust_of_this_program("cuda");
      const auto test = [&](const VariantOp& op, const VariantInfo& variant) {
        return trust->verdict(op.name, variant.name).reason;
      };
      failed = list_variants(Device::cuda, json["variants"], test) || failed;
      json["trust"] = trust->note();
    } else {
      const char* why = cuda_problem().empty() ? "not run: --device cpu" : "not run: no CUDA device";
      for (const VariantOp* op : variant_ops())
        for (const VariantInfo& variant : op->variants(Device::cuda))
          json["variants"].push_back(to_json(*op, variant, false, why));
    }
    const Tuning tuning(tuning_key(runtime), cache_folder());
    json["tuning"] = tuning.note();
    json["tuned"] = Json::array();
    for (const TunedChoice& choice : tuning.choices()) json["tuned"].push_back(choice.to_json());
    if (!common.json) print(json);
    if (!common.json)
      for (const TunedChoice& choice : tuning.choices())
        std::printf("%-12s %s\n", "chosen", tuned_text(choice).c_str());
    return {.json = json, .exit_code = failed ? int(ErrorKind::verification) : 0};
  }

 private:
  // Variants of a device with what `test` says of them, "" being good; whether one failed.
  template <class Test>
  static bool list_variants(Device device, Json& list, const Test& test) {
    bool any_failed = false;
    for (const VariantOp* op : variant_ops())
      for (const VariantInfo& variant : op->variants(device)) {
        const std::string wrong = test(*op, variant);
        const bool foreign = wrong == kNotOnThisMachine;
        any_failed = any_failed || (!wrong.empty() && !foreign);
        const std::string good = variant.exact ? "self-test passed: equals the definition on hard data"
                                               : "self-test passed: right, but in no fixed order of sums";
        list.push_back(to_json(*op, variant, wrong.empty(),
                               wrong.empty() ? good
                               : foreign     ? wrong
                                             : "self-test: " + wrong));
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
