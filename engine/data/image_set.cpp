#include "image_set.hpp"

#include <filesystem>

#include "kernels/core/check.hpp"

namespace vqlab {

ImageSet load_image_set(std::string_view kind, const std::string& directory, Split split) {
  if (kind == "idx") return load_idx(directory, split);
  if (kind == "cifar") return load_cifar(directory, split);
  throw Error(ErrorKind::usage, fmt::format("unknown kind of data set '{}'", kind),
              "the kinds are: idx, cifar", "data.kind");
}

void require_data_directory(const std::string& directory) {
  std::error_code ignored;
  if (std::filesystem::is_directory(directory, ignored)) return;
  const bool is_debian_set = directory.starts_with("/usr/share/datasets/fashion-mnist");
  throw Error(
      ErrorKind::data, "the directory of the data set is missing",
      is_debian_set ? "apt-get install dataset-fashion-mnist" : "set data.path to the directory of the set",
      directory);
}

}  // namespace vqlab
