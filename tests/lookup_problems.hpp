// Problems that a lookup must solve, and what makes them hard.
#pragma once

#include <cmath>
#include <limits>

#include "testing.hpp"

namespace vqlab::testing {

struct LookupProblem {
  int64_t N, K, D;
  std::vector<float> latents, codebook;  // (N, D), (K, D)
};

inline LookupProblem gaussian(int64_t N, int64_t K, int64_t D, uint64_t seed, float scale = 1.0f) {
  LookupProblem p{N, K, D, normal_floats(N * D, seed), normal_floats(K * D, seed + 1)};
  for (float& x : p.latents) x *= scale;
  for (float& c : p.codebook) c *= scale;
  return p;
}

// Small integers and every code twice: exact ties near and far, within a group of codes and across groups.
inline LookupProblem tied(int64_t N, int64_t K, int64_t D, uint64_t seed) {
  LookupProblem p = gaussian(N, K, D, seed);
  for (float& x : p.latents) x = std::round(x);
  for (float& c : p.codebook) c = std::round(c);
  std::copy_n(p.codebook.begin(), K / 2 * D, p.codebook.begin() + K / 2 * D);
  return p;
}

// Pairs of codes `distance` apart that differ in the last bit of one element.
inline LookupProblem nearly_tied(int64_t N, int64_t K, int64_t D, int64_t distance, uint64_t seed) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  LookupProblem p = gaussian(N, K, D, seed);
  for (int64_t k = 0; k + distance < K; ++k) {
    if (k / distance % 2 != 0) continue;
    std::copy_n(p.codebook.begin() + k * D, D, p.codebook.begin() + (k + distance) * D);
    float& element = p.codebook[size_t((k + distance) * D + k % D)];
    element = std::nextafter(element, k % 3 == 0 ? kInfinity : -kInfinity);
  }
  return p;
}

}  // namespace vqlab::testing
