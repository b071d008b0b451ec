// What the kernels that a piece of host code launches ask of the chip.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace vqlab {

struct LaunchedKernel {
  std::string name;          // as launch() was given it
  int registers = 0;         // of a thread; 0: the device does not tell
  int64_t shared_bytes = 0;  // of a block, static and dynamic
};

// The kernels that this thread launches while the log lives, through launch() of cuda.hpp: not those inside
// of NVIDIA's libraries. Logs nest; the inner one sees its own.
class LaunchLog {
 public:
  LaunchLog() : outer_(std::exchange(current_, this)) {}
  ~LaunchLog() { current_ = outer_; }
  LaunchLog(const LaunchLog&) = delete;
  LaunchLog& operator=(const LaunchLog&) = delete;

  static LaunchLog* current() { return current_; }
  // Of several launches by one name the greatest numbers are kept.
  void add(const LaunchedKernel& launched) {
    const auto it = std::find_if(kernels_.begin(), kernels_.end(),
                                 [&](const LaunchedKernel& kernel) { return kernel.name == launched.name; });
    if (it == kernels_.end()) return kernels_.push_back(launched);
    it->registers = std::max(it->registers, launched.registers);
    it->shared_bytes = std::max(it->shared_bytes, launched.shared_bytes);
  }
  // In the order of their first launches.
  const std::vector<LaunchedKernel>& kernels() const { return kernels_; }

 private:
  static inline thread_local LaunchLog* current_ = nullptr;
  LaunchLog* outer_;
  std::vector<LaunchedKernel> kernels_;
};

}  // namespace vqlab
