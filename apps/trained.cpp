#include "trained.hpp"

#include <fmt/core.h>

#include <filesystem>

namespace vqlab {

void make_output_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path))
    throw Error(error == std::errc::no_space_on_device ? ErrorKind::resources : ErrorKind::usage,
                "cannot create the output directory" + (error ? ": " + error.message() : std::string()),
                "choose an -o in a writable place", path);
}

std::string picture_path(const std::string& directory, int64_t index, const char* what) {
  return fmt::format("{}/image-{:05}-{}.png", directory, index, what);
}

}  // namespace vqlab
