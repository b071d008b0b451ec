#include "testing.hpp"

#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace vqlab::testing {
namespace {

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

void require_close(const View<const float>& actual, const std::vector<double>& expected, double tolerance,
                   const std::string& what) {
  REQUIRE(actual.size() == int64_t(expected.size()));
  int64_t failures = 0, first = -1, worst = -1;
  double worst_error = -1.0;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(double(actual.data[i]) - expected[size_t(i)]);
    if (error <= tolerance) continue;
    ++failures;
    if (first < 0) first = i;
    if (!(error <= worst_error)) worst = i, worst_error = error;
  }
  INFO(what << ": " << failures << " of " << actual.size() << " differ by more than " << tolerance);
  if (failures > 0) {
    FAIL("first at " << first << ": " << actual.data[first] << " expected " << expected[size_t(first)]
                     << "; worst at " << worst << ": " << actual.data[worst] << " expected "
                     << expected[size_t(worst)]);
  }
}

std::vector<float> normal_floats(int64_t count, uint64_t seed) {
  const RandomKey key{.seed = seed, .step = 0, .use = RandomUse::weights, .tensor = 0xFFFF};
  std::vector<float> values(size_t(count), 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = random_bits(key, uint64_t(i));
    const double u = (double(bits.v[0]) + 1.0) * 0x1p-32,
                 angle = double(bits.v[1]) * 0x1p-32 * 6.283185307179586;
    values[size_t(i)] = float(std::sqrt(-2.0 * std::log(u)) * std::cos(angle));
  }
  return values;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "vqlab-test-XXXXXX").string();
  REQUIRE(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::permissions(path_, std::filesystem::perms::owner_all, ignored);
  std::filesystem::remove_all(path_, ignored);
}

CommandResult run_vqlab(const std::string& arguments) {
  const TemporaryDirectory directory;
  const std::string command =
      std::string(VQLAB_BINARY) + " " + arguments + " >" + (directory / "out") + " 2>" + (directory / "err");
  const int status = std::system(command.c_str());
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return {code, read_all(directory / "out"), read_all(directory / "err")};
}

void require_failure(const CommandResult& result, int exit_code, const std::string& what,
                     const std::string& hint) {
  INFO("stdout:\n" << result.out << "\nstderr:\n" << result.err);
  REQUIRE(result.exit_code == exit_code);
  const size_t error_at = result.err.find("error: "), hint_at = result.err.find("hint: ");
  REQUIRE(error_at != std::string::npos);
  REQUIRE(hint_at != std::string::npos);
  CHECK(result.err.find(what, error_at) < hint_at);
  CHECK(result.err.find(hint, hint_at) != std::string::npos);
}

}  // namespace vqlab::testing
