#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "command.hpp"
#include "engine/codebook_health.hpp"
#include "engine/codebook_pictures.hpp"
#include "engine/run_directory.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

class InspectCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory, or the directory of one of its checkpoints");
    o.option("-o,--output", output_, "directory for pictures of the codes and of their use; none without it");
    o.option("checkpoint", checkpoint_, "last, best, step-NNNNNNNN, or the path of a checkpoint");
  }

  CommandResult run(const CommonOptions& common) override {
    if (std::filesystem::exists(run_ + "/DONE")) {  // a checkpoint: RUN/ckpt/step-N
      checkpoint_ = run_;
      run_ = std::filesystem::canonical(run_).parent_path().parent_path();
    }
    const Config config = load_run_config(run_);
    const Checkpoint checkpoint(run_, checkpoint_);
    Json json = Json::object();
    json["config"] = to_toml(config);
    json["checkpoint"] = checkpoint.directory();
    json["step"] = checkpoint.progress().step;
    json["best_mse"] = checkpoint.progress().best_mse ? Json(*checkpoint.progress().best_mse) : Json();
    json["best_step"] = checkpoint.progress().best_step;
    json["weights_sha256"] = checkpoint.weights_sha256();
    json["tensors"] = Json::array();
    for (const Safetensors* file : {&checkpoint.model_file(), &checkpoint.optimiser_file()})
      for (const TensorInfo& t : file->tensors()) json["tensors"].push_back(describe(t));
    const ConvBook& plans = checkpoint.convolution_book();
    json["plans"] = plans.device.empty() ? Json() : plans.to_json();
    json["plans_summary"] =
        plans.device.empty() ? "" : fmt::format("{}, on {}", plans.summary(), plans.device);
    json["kernels"] = checkpoint.kernels().device.empty() ? Json() : checkpoint.kernels().to_json();
    add_codebook(json, config, checkpoint);
    json["files"] = Json::array();
    if (!output_.empty()) draw(json, common);
    if (!common.json) print(json);
    return {.json = json};
  }

 private:
  static Json describe(const TensorInfo& t) {
    Json json = Json::object();
    json["name"] = t.name;
    json["type"] = tensor_type_name(t.type);
    json["shape"] = Json::array();
    for (const int64_t side : t.shape) json["shape"].push_back(side);
    return json;
  }

  void add_codebook(Json& json, const Config& config, const Checkpoint& checkpoint) const {
    json["codebook"] = Json();
    json["codebook_missing"] = Json();
    json["findings"] = Json::array();
    const std::optional<CodebookSummary> s = summarise_codebook(run_, config, checkpoint);
    if (!s) {
      json["codebook_missing"] = why_no_codebook(checkpoint);
      return;
    }
    Json codebook = Json::object();
    codebook["size"] = s->size;
    codebook["used"] = s->used;
    codebook["perplexity"] = s->perplexity;
    codebook["dead"] = s->dead;
    codebook["age"] = s->age;
    codebook["norm"] = s->norm;
    codebook["drift"] = s->lines.empty() ? Json() : Json(s->lines.back().drift);
    json["codebook"] = codebook;
    for (const HealthFinding& f : judge_codebook(*s))
      json["findings"].push_back(Json::object({{"rule", f.rule}, {"what", f.what}, {"setting", f.setting}}));
  }

  // The pictures, and what the second one shows in numbers.
  void draw(Json& json, const CommonOptions& common) const {
    const auto trained = load_trained(run_, checkpoint_, common);
    trained->require_codes("inspect -o");
    const NamedSplit test = load_split(trained->config(), "test", trained->facts());
    make_output_directory(output_);
    const CodebookUse use =
        count_codes(encode_images(*trained, test.range()), trained->model().quantizer().codebook_size());
    const Usage usage = usage_of(use.counts.data(), int64_t(use.counts.size()));
    const std::string codes = output_ + "/codebook.png", chart = output_ + "/usage.png";
    write_code_pictures(codes, *trained, use);
    write_use_chart(chart, use, to_toml(trained->config()));
    const auto share = [&](size_t rank) {
      return double(use.counts[size_t(use.by_use[rank])]) / double(use.total);
    };
    json["usage"] = Json::object({{"split", "test"},
                                  {"images", test.range().count()},
                                  {"latents", use.total},
                                  {"codebook_size", int64_t(use.counts.size())},
                                  {"used", usage.used},
                                  {"perplexity", usage.perplexity},
                                  {"largest_share", share(0)},
                                  {"median_share", share(use.by_use.size() / 2)}});
    for (const std::string& path : {codes, chart}) json["files"].push_back(path);
  }

  static void print(const Json& json) {
    std::printf("%s\n", json.at("config").as_string().c_str());
    std::printf("checkpoint %s, step %lld\nweights_sha256 %s\n\n", json.at("checkpoint").as_string().c_str(),
                static_cast<long long>(json.at("step").as_integer()),
                json.at("weights_sha256").as_string().c_str());
    for (const Json& t : json.at("tensors").items()) {
      std::string shape;
      for (const Json& side : t.at("shape").items())
        shape += fmt::format("{}{}", shape.empty() ? "" : " x ", side.as_integer());
      std::printf("%-44s %-4s %s\n", t.at("name").as_string().c_str(), t.at("type").as_string().c_str(),
                  shape.c_str());
    }
    if (const Json& kernels = json.at("kernels"); !kernels.is_null())
      std::printf("\nkernels: lookup %s, cluster_sums %s, on %s\n", kernels.at("lookup").as_string().c_str(),
                  kernels.at("cluster_sums").as_string().c_str(), kernels.at("device").as_string().c_str());
    if (const std::string& plans = json.at("plans_summary").as_string(); !plans.empty())
      std::printf("\n%s\n", plans.c_str());
    if (const Json& c = json.at("codebook"); !c.is_null())
      std::printf(
          "\ncodebook: %lld codes, %lld used in the last batch, %lld dead, perplexity %.1f, age %.2f steps, "
          "norm %.3f\n",
          static_cast<long long>(c.at("size").as_integer()),
          static_cast<long long>(c.at("used").as_integer()),
          static_cast<long long>(c.at("dead").as_integer()), c.at("perplexity").as_number(),
          c.at("age").as_number(), c.at("norm").as_number());
    if (const Json& missing = json.at("codebook_missing"); !missing.is_null())
      std::printf("\ncodebook: none: %s\n", missing.as_string().c_str());
    for (const Json& finding : json.at("findings").items())
      std::printf("finding: %s: %s: set %s\n", finding.at("rule").as_string().c_str(),
                  finding.at("what").as_string().c_str(), finding.at("setting").as_string().c_str());
    if (const Json* usage = json.find("usage"))
      std::printf(
          "test split: %lld of %lld codes used, perplexity %.1f, the first code %.2f %% of the latents, the "
          "middle one %.3f %%\n",
          static_cast<long long>(usage->at("used").as_integer()),
          static_cast<long long>(usage->at("codebook_size").as_integer()),
          usage->at("perplexity").as_number(), 100.0 * usage->at("largest_share").as_number(),
          100.0 * usage->at("median_share").as_number());
    for (const Json& path : json.at("files").items()) std::printf("wrote %s\n", path.as_string().c_str());
  }

  std::string run_, output_, checkpoint_ = "last";
};

}  // namespace

extern const CommandEntry command_inspect;
const CommandEntry command_inspect{
    "inspect", "shows a run's configuration, tensors and codebook health",
    []() -> std::unique_ptr<Command> { return std::make_unique<InspectCommand>(); }};

}  // namespace vqlab
