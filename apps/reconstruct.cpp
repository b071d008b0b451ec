#include <fmt/core.h>

#include <cstdio>

#include "command.hpp"
#include "engine/evaluate.hpp"
#include "engine/io/png.hpp"
#include "engine/pictures.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

// A copy on the host of what lies on the device.
template <class T>
std::vector<std::remove_const_t<T>> download(const TrainedModel& trained, const View<T>& device) {
  std::vector<std::remove_const_t<T>> values(static_cast<size_t>(device.size()));
  trained.runtime().download(values.data(), device.data, device.bytes(), trained.runtime().compute());
  trained.runtime().synchronize(trained.runtime().compute());
  return values;
}

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
    const Model& model = trained.model();
    const auto& [height, width, channels] = model.shape();
    const View<const float> x = model.input();
    const std::vector<float> input = download(trained, x), result = download(trained, model.reconstruction());
    const View<int32_t> codes = model.quantizer().codes();
    const bool with_codes = model.quantizer().codebook_size() > 0 && model.quantizer().initialised();
    const std::vector<int32_t> code_values = with_codes ? download(trained, codes) : std::vector<int32_t>();
    const int64_t pixels = x[1] * x[2] * x[3];
    for (int64_t i = 0; i < count; ++i) {
      const auto write = [&](const char* what, const std::vector<uint8_t>& bytes, int64_t c) {
        files.push_back(picture_path(output, first + i, what));
        write_png(files.back(), {bytes.data(), {height, width, c}});
      };
      write("original", to_bytes({input.data() + i * pixels, {x[1], x[2], x[3]}}, height, width), channels);
      write("reconstruction", to_bytes({result.data() + i * pixels, {x[1], x[2], x[3]}}, height, width),
            channels);
      if (!with_codes) continue;
      const View<const int32_t> map(code_values.data() + i * codes[1] * codes[2], {codes[1], codes[2]});
      write("codes", code_map(map, model.config().model.downsampling, height, width), 3);
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
