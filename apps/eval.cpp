#include <fmt/core.h>

#include <cstdio>

#include "command.hpp"
#include "engine/evaluate.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

class EvalCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory");
    o.choice("split", split_, {"train", "validation", "test"}, "which images");
    o.option("checkpoint", checkpoint_, "last, best, step-NNNNNNNN, or the path of a checkpoint");
  }

  CommandResult run(const CommonOptions& common) override {
    const auto trained = load_trained(run_, checkpoint_, common);
    const NamedSplit split = load_split(trained->config(), split_, trained->facts());
    const Evaluation e =
        evaluate(trained->model(), trained->runtime(), split.range(), trained->facts().variance);
    if (!common.json) {
      std::printf("%s, step %lld\n", trained->checkpoint().directory().c_str(),
                  static_cast<long long>(trained->checkpoint().progress().step));
      print(e);
    }
    Json json = Json::object();
    json["split"] = split_;
    const Json values = e.to_json();
    for (const auto& [key, value] : values.members()) json[key] = value;
    json["run"] = run_;
    json["checkpoint_step"] = trained->checkpoint().progress().step;
    json["weights_sha256"] = trained->checkpoint().weights_sha256();
    json["device"] = trained->runtime().device_name();
    return {.json = json};
  }

 private:
  void print(const Evaluation& e) const {
    std::printf("%s split, %lld images\n", split_.c_str(), static_cast<long long>(e.images));
    if (e.labelled > 0)
      std::printf(
          "  accuracy     %.2f %% of %lld labelled images, by the classifier on the quantized latents\n",
          100.0 * e.accuracy, static_cast<long long>(e.labelled));
    if (e.has_decoder) print_reconstruction(e);
    if (e.codebook_size == 0) return;
    std::printf("  codes used   %lld of %lld, perplexity %.1f\n", static_cast<long long>(e.usage.used),
                static_cast<long long>(e.codebook_size), e.usage.perplexity);
    std::printf("  bits/image   %.1f nominal, %.1f entropy\n", e.bits_per_image_nominal,
                e.bits_per_image_entropy);
  }
  static void print_reconstruction(const Evaluation& e) {
    std::printf("  mse          %.6f   (%.4f of the training pixels' variance)\n", e.mse, e.nmse);
    std::printf("  psnr         %.2f dB   (mean of the images %.2f dB)\n", e.psnr_db, e.psnr_db_mean);
    std::printf("  ssim         %.4f\n", e.ssim);
  }

  std::string run_, split_ = "test", checkpoint_ = "last";
};

}  // namespace

extern const CommandEntry command_eval;
const CommandEntry command_eval{"eval", "measures reconstruction and codebook use over a whole split",
                                []() -> std::unique_ptr<Command> { return std::make_unique<EvalCommand>(); }};

}  // namespace vqlab
