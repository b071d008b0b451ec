// A place to run the program at, and what it prints.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "engine/io/json.hpp"
#include "synthetic.hpp"

namespace vqlab::testing {

// A directory with a small set and a configuration for it.
class Desk {
 public:
  explicit Desk(int64_t height = 8, int64_t width = 8, int64_t channels = 1) {
    std::filesystem::create_directories(directory_ / "data");
    write_synthetic_set(directory_ / "data", 80, height, width, channels);
    std::ofstream(config()) << tiny_config(directory_ / "data");
  }
  std::string config() const { return directory_ / "tiny.toml"; }
  std::string operator/(const std::string& name) const { return directory_ / name; }
  std::string train(const std::string& run) const {
    return "train " + config() + " --run " + (directory_ / run) + " ";
  }

 private:
  TemporaryDirectory directory_;
};

inline Json json_of(const CommandResult& result) {
  INFO(result.out << result.err);
  REQUIRE(result.exit_code == 0);
  REQUIRE(std::count(result.out.begin(), result.out.end(), '\n') == 1);
  return parse_json(result.out, "stdout");
}

inline void require_keys(const Json& json, const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    INFO(key);
    REQUIRE(json.find(key) != nullptr);
  }
}

}  // namespace vqlab::testing
