#include <cstdio>

#include "command.hpp"
#include "engine/environment.hpp"
#include "engine/lookup_case.hpp"
#include "engine/quantizer.hpp"
#include "kernels/codebook/lookup.hpp"

namespace vqlab {
namespace {

constexpr LookupShape kProblem{257, 130, 19};

struct Verdict {
  bool trusted, failed;
  std::string why;
};

// Whether a variant solves a small problem, in which every code comes twice, as the definition does.
Verdict self_test(const LookupVariant& variant) {
  if (!variant.supports(kProblem.N, kProblem.K, kProblem.D))
    return {false, false, "does not run on this machine"};
  LookupCase problem(kProblem, LookupCase::Data::tied, kProblem.N);
  problem.run(variant);
  if (problem.wrong() == 0) return {true, false, "equals the definition on data with ties"};
  return {false, true, fmt::format("{} of {} codes are wrong", problem.wrong(), problem.rows_checked())};
}

class DoctorCommand : public Command {
 public:
  void declare(Options&) override {}

  CommandResult run(const CommonOptions& common) override {
    const Runtime runtime(common.device, int(common.threads));
    Json json = environment(runtime);
    json["variants"] = Json::array();
    bool any_failed = false;
    for (const LookupVariant* variant : lookup_variants()) {
      const Verdict verdict = self_test(*variant);
      Json entry = Json::object();
      entry["name"] = "lookup " + std::string(variant->name);
      entry["trusted"] = verdict.trusted;
      entry["why"] = verdict.why;
      any_failed = any_failed || verdict.failed;
      json["variants"].push_back(entry);
    }
    if (!common.json) print(json);
    return {.json = json, .exit_code = any_failed ? int(ErrorKind::verification) : 0};
  }

 private:
  static void print(const Json& json) {
    for (const auto& [key, value] : json.members())
      if (value.is_string()) std::printf("%-10s %s\n", key.c_str(), value.as_string().c_str());
    for (const Json& library : json.at("libraries").items())
      std::printf("%-10s %s %s\n", "library", library.at("name").as_string().c_str(),
                  library.at("version").as_string().c_str());
    for (const Json& variant : json.at("variants").items())
      std::printf("%-10s %-16s %s: %s\n", "variant", variant.at("name").as_string().c_str(),
                  variant.at("trusted").as_bool() ? "ok" : "not used", variant.at("why").as_string().c_str());
    for (const QuantizerEntry* entry : quantizers())
      std::printf("%-10s %-16s %s\n", "quantizer", std::string(entry->name).c_str(),
                  std::string(entry->idea).c_str());
  }
};

}  // namespace

extern const CommandEntry command_doctor;
const CommandEntry command_doctor{
    "doctor", "tells about machine, libraries and kernel variants",
    []() -> std::unique_ptr<Command> { return std::make_unique<DoctorCommand>(); }};

}  // namespace vqlab
