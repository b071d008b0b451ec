#include <fmt/core.h>

#include <cstdio>

#include "command.hpp"
#include "engine/evaluate.hpp"
#include "engine/io/png.hpp"
#include "engine/pictures.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

class ReconstructCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory");
    o.option("-o,--output", output_, "directory for the pictures (default: RUN/pictures)");
    o.choice("split", split_, {"train", "validation", "test"}, "which images");
    o.option("count", count_, 0, int64_t(1e12), "how many of them, from the first; 0 = all");
    o.option("checkpoint", checkpoint_, "last, best, step-NNNNNNNN, or the path of a checkpoint");
  }

  CommandResult run(const CommonOptions& common) override {
    const auto trained = load_trained(run_, checkpoint_, common);
    trained->require_decoder("reconstruct");
    const NamedSplit split = load_split(trained->config(), split_, trained->facts());
    ImageRange range = split.range();
    if (count_ > 0) range.end = range.begin + std::min(count_, range.count());
    const std::string output = output_.empty() ? run_ + "/pictures" : output_;
    make_output_directory(output);
    std::vector<std::string> files;
    const Evaluation e =
        evaluate(trained->model(), trained->runtime(), range, trained->facts().variance, /*with_ssim=*/false,
                 [&](int64_t first, int64_t count) { write_batch(*trained, output, first, count, files); });
    if (!common.json)
      std::printf("%lld images, mse %.6f, %lld files in %s\n", static_cast<long long>(e.images), e.mse,
                  static_cast<long long>(files.size()), output.c_str());
    Json json = Json::object();
    json["images"] = e.images;
    json["mse"] = e.mse;
    json["files"] = Json::array();
    for (const std::string& file : files) json["files"].push_back(file);
    return {.json = json};
  }

 private:
  // Original, reconstruction and, if there are codes, code map of each image of the batch just computed.
  static void write_batch(TrainedModel& trained, const std::string& output, int64_t first, int64_t count,
                          std::vector<std::string>& files) {
    const BatchPictures pictures(trained.model(), trained.runtime());
    const auto& [height, width, channels] = trained.model().shape();
    for (int64_t i = 0; i < count; ++i) {
      const auto write = [&](const char* what, const std::vector<uint8_t>& bytes, int64_t c) {
        files.push_back(picture_path(output, first + i, what));
        write_png(files.back(), {bytes.data(), {height, width, c}});
      };
      write("original", pictures.original(i), channels);
      write("reconstruction", pictures.reconstruction(i), channels);
      if (pictures.has_codes()) write("codes", pictures.codes(i), 3);
    }
  }

  std::string run_, output_, split_ = "test", checkpoint_ = "last";
  int64_t count_ = 32;
};

}  // namespace

extern const CommandEntry command_reconstruct;
const CommandEntry command_reconstruct{
    "reconstruct", "writes originals, reconstructions and code maps as PNG",
    []() -> std::unique_ptr<Command> { return std::make_unique<ReconstructCommand>(); }};

}  // namespace vqlab
