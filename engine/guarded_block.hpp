// Device memory that shows whether somebody wrote beside it.
#pragma once

#include "runtime.hpp"

namespace vqlab {

// Zeroed memory between two bands of a known pattern.
class GuardedBlock {
 public:
  // Throws Error(resources) as Runtime::allocate.
  GuardedBlock(const Runtime& runtime, int64_t bytes, const std::string& what);

  std::byte* get() const { return block_.get() + kBand; }
  // Whether the bands are as they were. Waits for the compute stream.
  bool is_whole() const;
  const std::string& name() const { return name_; }

 private:
  static constexpr int64_t kBand = 256;

  const Runtime& runtime_;
  int64_t bytes_;  // between the bands
  std::string name_;
  Block block_;
};

}  // namespace vqlab
