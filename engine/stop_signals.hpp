// Ctrl-C and SIGTERM as a wish to stop at the next good place.
#pragma once

#include <unistd.h>

#include <csignal>

#include "kernels/core/check.hpp"

namespace vqlab {

// The kind, and so the exit code, of the error of what a signal ended without a result.
constexpr ErrorKind stopped_by(int signal) { return ErrorKind(128 + signal); }

// While one lives, the first SIGINT or SIGTERM asks for a clean stop, the second ends the process at once.
// One inside another shares its signal.
class StopSignals {
 public:
  StopSignals() {
    if (depth_++ == 0) caught_ = 0;
    struct sigaction action {};
    action.sa_flags = SA_RESTART;
    action.sa_handler = [](int signal) {
      if (caught_) _exit(128 + signal);
      caught_ = signal;
    };
    sigaction(SIGINT, &action, &interrupt_);
    sigaction(SIGTERM, &action, &terminate_);
  }
  ~StopSignals() {
    sigaction(SIGINT, &interrupt_, nullptr);
    sigaction(SIGTERM, &terminate_, nullptr);
    --depth_;
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  // The signal, or 0.
  static int caught() { return caught_; }

 private:
  static inline volatile std::sig_atomic_t caught_ = 0;
  static inline int depth_ = 0;
  struct sigaction interrupt_ {
  }, terminate_{};
};

}  // namespace vqlab
