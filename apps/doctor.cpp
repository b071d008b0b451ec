#include <cstdio>

#include "command.hpp"
#include "engine/environment.hpp"
#include "engine/lookup_case.hpp"
#include "engine/quantizer.hpp"
#include "kernels/codebook/lookup.hpp"

namespace vqlab {
namespace {

// "" if the variant solves a small problem, in which every code comes twice, as the definition does; else
// what is wrong.
std::string self_test(const LookupVariant& variant) {
  LookupCase problem({257, 130, 19}, LookupCase::Data::tied, 257);
  if (!variant.supports(257, 130, 19)) return "does not run on this machine";
  problem.run(variant);
  return problem.wrong() == 0
             ? ""
             : fmt::format("{} of {} codes are wrong", problem.wrong(), problem.rows_checked());
}

class DoctorCommand : public Command {
 public:
  void declare(Options&) override {}

  CommandResult run(const CommonOptions& common) override {
    const Runtime runtime(common.device, int(common.threads));
    Json json = environment(runtime);
    json["variants"] = Json::array();
    bool all_trusted = true;
    for (const LookupVariant* variant : lookup_variants()) {
      const std::string why = self_test(*variant);
      Json entry = Json::object();
      entry["name"] = "lookup " + std::string(variant->name);
      entry["trusted"] = why.empty();
      entry["why"] = why.empty() ? "equals the definition on data with ties" : why;
      all_trusted = all_trusted && why.empty();
      json["variants"].push_back(entry);
    }
    if (!common.json) print(json);
    return {.json = json, .exit_code = all_trusted ? 0 : int(ErrorKind::verification)};
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
                  variant.at("trusted").as_bool() ? "ok" : "FAILED", variant.at("why").as_string().c_str());
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
