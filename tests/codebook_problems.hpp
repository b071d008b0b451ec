// Latents with codes: what the tests of the codebook ops start from.
#pragma once

#include <limits>
#include <vector>

#include "kernels/core/random.hpp"
#include "kernels/core/view.hpp"
#include "testing.hpp"

namespace vqlab::testing {

inline constexpr double kEps =
    std::numeric_limits<float>::epsilon() / 2;  // relative error of one float operation

struct Problem {
  int64_t N, K, D;
  std::vector<float> latents, codebook;
  std::vector<int32_t> codes;
  Problem(int64_t n, int64_t k, int64_t d, uint64_t seed = 1)
      : N(n), K(k), D(d), latents(normal_floats(n * d, seed)), codebook(normal_floats(k * d, seed + 1)) {
    const RandomKey key{.seed = seed + 2, .step = 0, .use = RandomUse::augment, .tensor = 0};
    for (int64_t i = 0; i < n; ++i)
      codes.push_back(int32_t(random_bits(key, uint64_t(i)).v[0] % uint32_t(k)));
  }
  View<const float> latents_view() const { return {latents.data(), {N, D}}; }
  View<const float> codebook_view() const { return {codebook.data(), {K, D}}; }
  View<const int32_t> codes_view() const { return {codes.data(), {N}}; }
};

inline const std::vector<Problem>& problems() {
  static const std::vector<Problem> list = {{1, 1, 1},    {3, 2, 4},      {33, 511, 3},
                                            {129, 2, 65}, {1000, 16, 64}, {4097, 7, 8}};
  return list;
}

// Of all rows, `share` have code K / 2, the rest are spread evenly over those from `lowest` on.
inline std::vector<int32_t> skewed_codes(int64_t N, int64_t K, double share, int64_t lowest, uint64_t seed) {
  std::vector<int32_t> codes(size_t(N), 0);
  for (size_t n = 0; n < codes.size(); ++n) {
    const auto bits = random_bits({.seed = seed}, n);
    codes[n] = int32_t(
        double(bits.v[0]) * 0x1p-32 < share ? K / 2 : lowest + int64_t(bits.v[1] % uint32_t(K - lowest)));
  }
  return codes;
}

// Distributions of codes that every variant of the cluster sums is tried with.
struct CodesOfRows {
  const char* name;
  double share;
  double empty;  // part of the codes, the lowest, that only the share above takes
};
inline constexpr CodesOfRows kCodesOfRows[] = {{"even", 0.0, 0.0},
                                               {"a tenth in one code", 0.1, 0.0},
                                               {"nine tenths in one code", 0.9, 0.0},
                                               {"all in one code", 1.0, 0.0},
                                               {"empty codes", 0.1, 0.6}};
inline std::vector<int32_t> codes_of_rows(const CodesOfRows& of, int64_t N, int64_t K, uint64_t seed) {
  return skewed_codes(N, K, of.share, int64_t(of.empty * double(K)), seed);
}

}  // namespace vqlab::testing
