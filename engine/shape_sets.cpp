#include "shape_sets.hpp"

#include <charconv>
#include <limits>
#include <utility>

#include "data/image_set.hpp"
#include "kernel_choice.hpp"
#include "kernels/core/names.hpp"
#include "trained_model.hpp"

namespace vqlab {
namespace {

constexpr std::pair<std::string_view, VariantShape> kNamed[] = {{"S1", {262144, 512, 64}},
                                                                {"S2", {1048576, 1024, 64}},
                                                                {"S3", {1048576, 8192, 256}},
                                                                {"S4", {262144, 16384, 8}},
                                                                {"S5", {65536, 262144, 256}}};

std::vector<NamedShape> shapes_of_config(const std::string& path) {
  const Config config = load_config(path, {});
  if (config.quantizer.kind == "none")
    throw Error(ErrorKind::usage, "a plain autoencoder has no codebook, and so no shapes to compare at",
                "use a configuration of another quantizer.kind, for example \"vq_ema\"", path);
  const ImageSet set = load_image_set(config.data.kind, config.data.path, Split::train);
  return {
      {quantizer_shape(config, config.train.batch_size, set.height, set.width), config.name + " training"},
      {quantizer_shape(config, kInferenceBatch, set.height, set.width), config.name + " inference"}};
}

NamedShape find_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const auto& [known, shape] : kNamed) {
    if (name == known) return {shape, std::string(name)};
    names.push_back(known);
  }
  const std::string near = nearest_name(name, names);
  throw Error(
      ErrorKind::usage, fmt::format("unknown shape set '{}'", name),
      fmt::format("{}there are S1 to S5, and configurations: CONFIG.toml; a shape N,K,D is given by --shape",
                  near.empty() ? "" : fmt::format("did you mean '{}'? ", near)),
      "--shapes");
}

}  // namespace

std::vector<std::string_view> split_text(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end; (end = text.find(separator)) != text.npos; text.remove_prefix(end + 1))
    parts.push_back(text.substr(0, end));
  parts.push_back(text);
  return parts;
}

NamedShape parse_shape(const std::string& text) {
  const std::vector<std::string_view> parts = split_text(text, ',');
  std::vector<int64_t> sizes;
  for (const std::string_view part : parts) {
    int64_t size = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), size);
    if (error == std::errc() && end == part.data() + part.size() && size >= 1) sizes.push_back(size);
  }
  if (parts.size() != 3 || sizes.size() != 3)
    throw Error(ErrorKind::usage, fmt::format("'{}' is not a shape N,K,D", text),
                "three whole numbers from 1, for example --shape 65536,512,64", "--shape");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (*std::max_element(sizes.begin(), sizes.end()) > kMost)
    throw Error(ErrorKind::usage, fmt::format("shape {} does not fit into memory", text),
                "use fewer latents, codes or elements", "--shape");
  return {{sizes[0], sizes[1], sizes[2]}};
}

std::vector<NamedShape> shape_set(const std::string& names) {
  std::vector<NamedShape> shapes;
  for (const std::string_view name : split_text(names, ',')) {
    if (!name.ends_with(".toml")) {
      shapes.push_back(find_named(name));
      continue;
    }
    for (NamedShape& shape : shapes_of_config(std::string(name))) shapes.push_back(std::move(shape));
  }
  return shapes;
}

}  // namespace vqlab
