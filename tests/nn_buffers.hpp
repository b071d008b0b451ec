// Memory and sums for the tests of elementwise ops and reductions.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/core/parallel.hpp"
#include "testing.hpp"

namespace vqlab::testing {

inline constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Around the widths of vectors, the blocks of sums and the pieces of parallel loops.
inline const std::vector<int64_t> kSizes = {1, 3, 31, 33, 255, 257, 4095, 4096, 4097, 16385, 70001};

// The number of threads while it lives.
struct WorkerCount {
  explicit WorkerCount(int count) { set_worker_count(count); }
  ~WorkerCount() { set_worker_count(0); }
};

// One element off alignment, between guard bands.
struct Buffer : Guarded<float> {
  explicit Buffer(const std::vector<float>& values) : Guarded<float>(int64_t(values.size()), 1) {
    std::copy(values.begin(), values.end(), data());
  }
  explicit Buffer(int64_t size) : Buffer(std::vector<float>(size_t(size), kNan)) {}
  View<float> all() { return view({size()}); }
  std::vector<float> values() { return {data(), data() + size()}; }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The order of tree_sum.hpp, written out.
inline float literal_sum(const std::vector<float>& terms) {
  const auto block = [](const float* first, size_t count) {
    std::vector<float> lanes(256, 0.0f);
    for (size_t i = 0; i < count; ++i) lanes[i % 256] += first[i];
    while (lanes.size() > 1) {
      for (size_t l = 0; l < lanes.size() / 2; ++l) lanes[l] += lanes[l + lanes.size() / 2];
      lanes.resize(lanes.size() / 2);
    }
    return lanes[0];
  };
  std::vector<float> sums;
  for (size_t first = 0; first < terms.size(); first += 4096)
    sums.push_back(block(terms.data() + first, std::min<size_t>(4096, terms.size() - first)));
  return block(sums.data(), sums.size());
}

}  // namespace vqlab::testing
