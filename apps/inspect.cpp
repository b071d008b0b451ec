#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "command.hpp"
#include "engine/checkpoint.hpp"
#include "engine/run_directory.hpp"
#include "kernels/codebook/fsq.hpp"

namespace vqlab {
namespace {

struct CodebookSummary {
  int64_t size = 0, used = 0, dead = 0;
  double perplexity = 0.0, mean_age = 0.0, mean_norm = 0.0;
};

// From the averages that training keeps: used = in the last batch, perplexity of the averaged counts.
CodebookSummary summarise_codebook(const Checkpoint& checkpoint, const QuantizerConfig& config) {
  const double threshold = config.restart_threshold;
  const std::vector<float> sizes = checkpoint.optimiser_file().floats("quantize.ema.cluster_size");
  const std::vector<int32_t> age = checkpoint.optimiser_file().values<int32_t>("quantize.age");
  const std::vector<float> codes = config.kind == "fsq"
                                       ? fsq_codebook(fsq_grid(config.levels))
                                       : checkpoint.model_file().floats("quantize.embedding.weight");
  CodebookSummary s{.size = int64_t(sizes.size())};
  double total = 0.0;
  for (const float size : sizes) total += double(size);
  const size_t D = codes.size() / sizes.size();
  double entropy = 0.0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    const double p = double(sizes[k]) / total;
    if (p > 0.0) entropy -= p * std::log(p);
    s.used += age[k] == 0;
    s.dead += double(sizes[k]) < threshold * total / double(sizes.size());
    s.mean_age += double(age[k]) / double(sizes.size());
    double norm = 0.0;
    for (size_t d = 0; d < D; ++d) norm += double(codes[k * D + d]) * double(codes[k * D + d]);
    s.mean_norm += std::sqrt(norm) / double(sizes.size());
  }
  s.perplexity = std::exp(entropy);
  return s;
}

// What is wrong with a codebook, each with the one setting to change.
std::vector<std::string> findings(const Config& config, const CodebookSummary& s, int64_t latents_per_step) {
  std::vector<std::string> list;
  const bool grid = config.quantizer.kind == "fsq";  // nothing restarts its codes
  const double dead_share = double(s.dead) / double(s.size);
  if (grid && dead_share > 0.1)
    list.push_back(
        fmt::format("{} of {} codes are dead: lower quantizer.levels, or train longer", s.dead, s.size));
  else if (!grid && config.quantizer.restart_threshold == 0.0)
    list.push_back("restart is off, so codes that die stay dead: set quantizer.restart_threshold = 0.1");
  else if (!grid && dead_share > 0.1)
    list.push_back(fmt::format("{} of {} codes are dead: set quantizer.restart_every = 1, or train longer",
                               s.dead, s.size));
  if (s.size > latents_per_step)
    list.push_back(
        fmt::format("{} codes compete for the {} latents of a batch: raise train.batch_size or lower {}",
                    s.size, latents_per_step, grid ? "quantizer.levels" : "quantizer.codebook_size"));
  if (s.perplexity < 0.1 * double(s.size))
    list.push_back(fmt::format("few codes carry nearly all latents (perplexity {:.1f} of {}): lower {}",
                               s.perplexity, s.size,
                               grid ? "quantizer.levels" : "quantizer.dim or quantizer.codebook_size"));
  return list;
}

// The codebook's last logged movement, or null: a checkpoint holds one moment only.
Json last_drift(const std::string& run) {
  std::ifstream file(run + "/metrics.jsonl");
  Json drift;
  for (std::string line; std::getline(file, line);) try {
      const Json json = parse_json(line, "metrics.jsonl");
      if (const Json* value = json.find("drift")) drift = *value;
    } catch (const Error&) {
      break;  // a killed run may leave half a line
    }
  return drift;
}

class InspectCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory, or the directory of one of its checkpoints");
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
    json["codebook"] = Json();
    json["findings"] = Json::array();
    const bool waiting =
        checkpoint.optimiser_file().find("quantize.first_latents") != nullptr;  // for k-means
    if (!waiting && checkpoint.progress().step > 0 &&
        checkpoint.optimiser_file().find("quantize.ema.cluster_size") != nullptr)
      add_codebook(json, config, checkpoint);
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
    const CodebookSummary s = summarise_codebook(checkpoint, config.quantizer);
    Json codebook = Json::object();
    codebook["size"] = s.size;
    codebook["used"] = s.used;
    codebook["perplexity"] = s.perplexity;
    codebook["dead"] = s.dead;
    codebook["age"] = s.mean_age;
    codebook["norm"] = s.mean_norm;
    codebook["drift"] = last_drift(run_);
    json["codebook"] = codebook;
    const ImageShape& shape = checkpoint.facts().shape;
    const int64_t latents = quantizer_shape(config, config.train.batch_size, shape.height, shape.width).N;
    for (const std::string& finding : findings(config, s, latents)) json["findings"].push_back(finding);
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
    for (const Json& finding : json.at("findings").items())
      std::printf("finding: %s\n", finding.as_string().c_str());
  }

  std::string run_, checkpoint_ = "last";
};

}  // namespace

extern const CommandEntry command_inspect;
const CommandEntry command_inspect{
    "inspect", "shows a run's configuration, tensors and codebook health",
    []() -> std::unique_ptr<Command> { return std::make_unique<InspectCommand>(); }};

}  // namespace vqlab
