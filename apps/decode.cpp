#include <fmt/core.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "command.hpp"
#include "engine/inference.hpp"
#include "engine/io/file.hpp"
#include "engine/io/npy.hpp"
#include "engine/io/png.hpp"
#include "engine/pictures.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

constexpr int64_t kMaxCodesBytes = int64_t(64) << 30;

class DecodeCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory");
    o.positional("codes", codes_path_, true, "codes (.npy) written by encode");
    o.option("-o,--output", output_, "directory for the pictures");
    o.option("checkpoint", checkpoint_, "last, best, step-NNNNNNNN, or the path of a checkpoint");
  }

  CommandResult run(const CommonOptions& common) override {
    const auto trained = load_trained(run_, checkpoint_, common);
    trained->require_codes("decode");
    const std::string bytes = read_file(codes_path_, kMaxCodesBytes);
    check_description(*trained, bytes);
    const NpyArray array(bytes, codes_path_);
    const Model& model = trained->model();
    const std::vector<int64_t> shape = array.shape();
    if (shape.size() != 3 || shape[1] != model.code_height() || shape[2] != model.code_width())
      throw Error(ErrorKind::data,
                  fmt::format("the codes are not (images, {}, {}) as this model's", model.code_height(),
                              model.code_width()),
                  "decode with the run that encoded", codes_path_);
    const std::vector<int32_t> codes = array.codes();
    make_output_directory(output_);
    const auto& [height, width, channels] = model.shape();
    decode_codes(*trained, codes, shape[0], [&](int64_t index, const View<const float>& image) {
      const std::vector<uint8_t> pixels = to_bytes(image, height, width);
      write_png(picture_path(output_, index, "reconstruction"), {pixels.data(), {height, width, channels}});
    });
    Json json = Json::object();
    json["images"] = shape[0];
    for (const int64_t side : shape) json["shape"].push_back(side);
    json["dtype"] = npy_type_name(array.type());
    json["bits_per_image"] =
        double(shape[1] * shape[2]) * std::log2(double(model.quantizer().codebook_size()));
    json["directory"] = output_;
    if (!common.json) std::printf("%lld pictures in %s\n", static_cast<long long>(shape[0]), output_.c_str());
    return {.json = json};
  }

 private:
  // Codes of another model decode to noise without any sign of it, so the description beside them is
  // believed.
  void check_description(const TrainedModel& trained, const std::string& bytes) const {
    const std::string path = codes_path_ + ".json";
    if (!std::filesystem::exists(path)) {
      std::fprintf(stderr, "warning: %s is missing, so nothing tells whether this model wrote these codes\n",
                   path.c_str());
      return;
    }
    const Json description = parse_json(read_file(path, 1 << 20), path);
    if (description.at("codes_xxh3").as_string() != xxh3_hex(bytes))
      throw Error(ErrorKind::data, "the codes are damaged or not those that the description belongs to",
                  "encode again", codes_path_);
    if (description.at("weights_sha256").as_string() != trained.checkpoint().weights_sha256())
      throw Error(
          ErrorKind::data,
          fmt::format("the codes were written by other weights ({} at step {})",
                      description.at("run").as_string(), description.at("checkpoint_step").as_integer()),
          "decode with that run and --checkpoint", codes_path_);
  }

  std::string run_, codes_path_, output_ = "decoded", checkpoint_ = "last";
};

}  // namespace

extern const CommandEntry command_decode;
const CommandEntry command_decode{
    "decode", "turns codes back into pictures",
    []() -> std::unique_ptr<Command> { return std::make_unique<DecodeCommand>(); }};

}  // namespace vqlab
