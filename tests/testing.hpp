// What every test includes: Catch2 (version 2 or 3), and the comparison and memory helpers.
#pragma once

#if __has_include(<catch2/catch.hpp>)
#include <catch2/catch.hpp>
#else
#include <catch2/catch_all.hpp>
#endif

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/core/op.hpp"
#include "kernels/core/random.hpp"

namespace vqlab::testing {

// Passes only if |actual - expected| <= tolerance for every element, written so that NaN fails. Otherwise
// reports the number of failures, the first and the worst index, and both values. `tolerance` is derived at
// the call, with its reason.
void require_close(const View<const float>& actual, const std::vector<double>& expected, double tolerance,
                   const std::string& what);

// A buffer between two guard bands of a known pattern, its start shifted by `offset` elements from alignment.
// Filled with 0xFF bytes (NaN in float, -1 in int). check_guards() fails the test if a band was written.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t size, int64_t offset = 0)
      : size_(size), offset_(offset), memory_(size_t(size + offset) * sizeof(T) + 2 * kBand, kPattern) {
    std::memset(data(), 0xFF, size_t(size) * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(memory_.data() + kBand) + offset_; }
  int64_t size() const { return size_; }
  View<T> view(std::initializer_list<int64_t> dims) { return View<T>(data(), dims); }
  void check_guards() const {
    const unsigned char* end = memory_.data() + memory_.size();
    for (const unsigned char* p = memory_.data(); p < memory_.data() + kBand + size_t(offset_) * sizeof(T);
         ++p)
      if (*p != kPattern) FAIL("guard band before the buffer was overwritten");
    for (const unsigned char* p = end - kBand; p < end; ++p)
      if (*p != kPattern) FAIL("guard band after the buffer was overwritten");
  }

 private:
  static constexpr size_t kBand = 256;
  static constexpr unsigned char kPattern = 0xA5;
  int64_t size_, offset_;
  std::vector<unsigned char> memory_;
};

// Standard normal numbers (Box-Muller on Philox), the same for equal seeds.
std::vector<float> normal_floats(int64_t count, uint64_t seed);

// A new empty directory, removed with its contents when the object dies.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// The result of running a program: its exit code (128 + signal when killed) and what it printed.
struct CommandResult {
  int exit_code;
  std::string out, err;
};
// Runs build/.../vqlab with a shell command line of arguments.
CommandResult run_vqlab(const std::string& arguments);

// A bad-input test in one line: exit code, an `error:` line that contains `what`, a `hint:` line that
// contains `hint`.
void require_failure(const CommandResult& result, int exit_code, const std::string& what,
                     const std::string& hint);

}  // namespace vqlab::testing
