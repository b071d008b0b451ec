#include <fmt/core.h>

#include <cmath>
#include <cstdio>

#include "command.hpp"
#include "engine/inference.hpp"
#include "engine/io/file.hpp"
#include "engine/io/npy.hpp"
#include "trained.hpp"

namespace vqlab {
namespace {

// The smallest unsigned type that holds every code.
NpyType code_type(int64_t K) {
  if (K <= 1 << 8) return NpyType::u8;
  return K <= 1 << 16 ? NpyType::u16 : NpyType::u32;
}

// The bytes of a .npy file (images, h, w) of that type.
std::string encode_codes(const std::vector<int32_t>& codes, const std::vector<int64_t>& shape, NpyType type) {
  const auto as = [&](auto zero) {
    const std::vector<decltype(zero)> narrow(codes.begin(), codes.end());
    return encode_npy(type, shape, narrow.data());
  };
  if (type == NpyType::u8) return as(uint8_t{0});
  return type == NpyType::u16 ? as(uint16_t{0}) : as(uint32_t{0});
}

class EncodeCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("run", run_, true, "run directory");
    o.option("-o,--output", output_, "file for the codes (.npy); its description goes beside it (.json)");
    o.choice("split", split_, {"train", "validation", "test"}, "which images");
    o.option("checkpoint", checkpoint_, "last, best, step-NNNNNNNN, or the path of a checkpoint");
  }

  CommandResult run(const CommonOptions& common) override {
    const auto trained = load_trained(run_, checkpoint_, common);
    trained->require_codes("encode");
    const NamedSplit split = load_split(trained->config(), split_, trained->facts());
    const std::vector<int32_t> codes = encode_images(*trained, split.range());
    const Model& model = trained->model();
    const int64_t K = model.quantizer().codebook_size();
    const std::vector<int64_t> shape = {split.range().count(), model.code_height(), model.code_width()};
    const std::string dtype(npy_type_name(code_type(K)));
    const std::string bytes = encode_codes(codes, shape, code_type(K));

    Json description = Json::object();
    description["run"] = run_;
    description["checkpoint_step"] = trained->checkpoint().progress().step;
    description["weights_sha256"] = trained->checkpoint().weights_sha256();
    description["codes_xxh3"] = xxh3_hex(bytes);
    description["split"] = split_;
    description["codebook_size"] = K;
    description["height"] = model.shape().height;
    description["width"] = model.shape().width;
    description["channels"] = model.shape().channels;
    write_file_durably(output_, bytes);
    write_file_durably(output_ + ".json", description.dump(2) + "\n");

    Json json = Json::object();
    json["images"] = shape[0];
    for (const int64_t side : shape) json["shape"].push_back(side);
    json["dtype"] = dtype;
    json["bits_per_image"] = double(shape[1] * shape[2]) * std::log2(double(K));
    json["file"] = output_;
    if (!common.json)
      std::printf("%lld images as %lld x %lld codes (%s), %.1f bits an image, in %s\n",
                  static_cast<long long>(shape[0]), static_cast<long long>(shape[1]),
                  static_cast<long long>(shape[2]), dtype.c_str(), json.at("bits_per_image").as_number(),
                  output_.c_str());
    return {.json = json};
  }

 private:
  std::string run_, output_ = "codes.npy", split_ = "test", checkpoint_ = "last";
};

}  // namespace

extern const CommandEntry command_encode;
const CommandEntry command_encode{
    "encode", "turns the images of a split into codes (.npy)",
    []() -> std::unique_ptr<Command> { return std::make_unique<EncodeCommand>(); }};

}  // namespace vqlab
