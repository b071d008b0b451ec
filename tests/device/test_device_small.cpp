// The small codebook ops on the device, against their CPU implementations, bit for bit.
#include <cmath>

#include "device_testing.hpp"
#include "kernels/codebook/ema_update.hpp"
#include "kernels/codebook/health.hpp"
#include "kernels/codebook/restart.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "kernels/core/copy.hpp"
#include "on_both.hpp"

namespace vqlab::testing {
namespace {

struct Sizes {
  int64_t N, K, D, offset;  // offset of all arrays from alignment, in elements
  std::string text() const {
    return "N " + std::to_string(N) + ", K " + std::to_string(K) + ", D " + std::to_string(D) + ", offset " +
           std::to_string(offset);
  }
};

std::vector<float> zeros(int64_t size) { return std::vector<float>(size_t(size), 0.0f); }

// Random numbers in [0, below).
std::vector<int32_t> random_integers(int64_t size, int64_t below, uint64_t seed) {
  std::vector<int32_t> values(size_t(size), 0);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = int32_t(random_bits({.seed = seed}, i).v[0] % uint32_t(below));
  return values;
}

const std::vector<Sizes>& straight_through_sizes() {
  static const std::vector<Sizes> sizes = {
      {0, 2, 3, 0},     {1, 1, 1, 0},     {3, 2, 4, 0},    {3, 2, 4, 1},    {33, 511, 3, 0}, {129, 2, 65, 1},
      {300, 16, 64, 0}, {300, 16, 64, 1}, {4097, 7, 8, 0}, {4097, 7, 1, 0}, {2, 3, 4100, 0}, {2, 3, 8193, 0},
      {7, 3, 3, 0},     {10, 4, 7, 1},    {19, 4, 5, 0},   {31, 4, 12, 1}};
  return sizes;
}

}  // namespace

TEST_CASE("device testing: what reads past the ends of an array gets NaN", "[kernels]") {
  if (memory_is_checked()) return;  // it would be an error
  const DeviceArray<float> input(std::vector<float>{1.0f, 2.0f, 3.0f}), output(5);
  run(CopyOp{.output = output.view(), .input = {input.data() - 1, {5}}}, device_stream());
  const std::vector<float> read = output.download();
  CHECK(std::isnan(read[0]));
  CHECK(read[2] == 2.0f);
  CHECK(std::isnan(read[4]));
}

TEST_CASE("device: straight through quantizes and measures as on the CPU", "[kernels]") {
  for (const Sizes& s : straight_through_sizes())
    for (const bool awkward : {false, true})
      require_same_on_both(s.text(), [&](auto place) {
        const auto floats = awkward ? awkward_floats : normal_floats;
        auto latents = place.array(floats(s.N * s.D, 1), s.offset),
             codebook = place.array(floats(s.K * s.D, 2), s.offset);
        auto codes = place.array(random_integers(s.N, s.K, 3), s.offset);
        auto quantized = place.array(zeros(s.N * s.D), s.offset), distance = place.array(zeros(1), s.offset),
             block_sums = place.array(zeros(sum_blocks(s.N * s.D)), s.offset);
        run(StraightThroughOp{.quantized = quantized.view({s.N, s.D}),
                              .distance = distance.view(),
                              .latents = latents.view({s.N, s.D}),
                              .codebook = codebook.view({s.K, s.D}),
                              .codes = codes.view(),
                              .block_sums = block_sums.view()},
            place.stream());
        return std::tuple(quantized.download(), distance.download(), block_sums.download());
      });
}

TEST_CASE("device: the gradient past the lookup has the bits of the CPU, also in place", "[kernels]") {
  for (const Sizes& s : straight_through_sizes())
    for (const bool in_place : {false, true})
      require_same_on_both(s.text(), [&](auto place) {
        auto latents = place.array(awkward_floats(s.N * s.D, 1), s.offset),
             codebook = place.array(awkward_floats(s.K * s.D, 2), s.offset),
             d_quantized = place.array(awkward_floats(s.N * s.D, 4), s.offset),
             d_latents = place.array(zeros(s.N * s.D), s.offset);
        auto codes = place.array(random_integers(s.N, s.K, 3), s.offset);
        run(StraightThroughBackwardOp{.d_latents = (in_place ? d_quantized : d_latents).view({s.N, s.D}),
                                      .d_quantized = d_quantized.view({s.N, s.D}),
                                      .latents = latents.view({s.N, s.D}),
                                      .codebook = codebook.view({s.K, s.D}),
                                      .codes = codes.view(),
                                      .commitment_scale = 0.37f},
            place.stream());
        return std::tuple(d_latents.download(), d_quantized.download());
      });
}

TEST_CASE("device: averages and codebook gradient have the bits of the CPU", "[kernels]") {
  for (const Sizes& s : std::vector<Sizes>{{0, 1, 1, 0},
                                           {0, 3, 5, 1},
                                           {0, 300, 1, 0},
                                           {0, 257, 3, 1},
                                           {0, 5, 1500, 0},
                                           {0, 65, 64, 0},
                                           {0, 1, 1024, 0}})
    for (const int32_t poisoned : {0, 1})
      require_same_on_both(s.text(), [&](auto place) {
        std::vector<float> sizes = normal_floats(s.K, 1);
        for (float& size : sizes) size = size < -0.5f ? 1e-4f : std::abs(size);  // some below the minimum
        auto codebook = place.array(normal_floats(s.K * s.D, 2), s.offset),
             cluster_sum = place.array(awkward_floats(s.K * s.D, 3), s.offset),
             sums = place.array(awkward_floats(s.K * s.D, 4), s.offset),
             gradient = place.array(zeros(s.K * s.D), s.offset), cluster_size = place.array(sizes, s.offset),
             counted_size = place.array(sizes, s.offset);
        auto counts = place.array(random_integers(s.K, 3, 5), s.offset);
        auto gate = place.array(std::vector<int32_t>{poisoned}, s.offset);
        const Stream stream = place.stream();
        run(CodebookGradientOp{.d_codebook = gradient.view({s.K, s.D}),
                               .codebook = codebook.view({s.K, s.D}),
                               .counts = counts.view(),
                               .sums = sums.view({s.K, s.D}),
                               .scale = 0.37f},
            stream);
        run(AverageCountsOp{.cluster_size = counted_size.view(),
                            .counts = counts.view(),
                            .poisoned = gate.view(),
                            .decay = 0.99f},
            stream);
        run(EmaUpdateOp{.codebook = codebook.view({s.K, s.D}),
                        .cluster_size = cluster_size.view(),
                        .cluster_sum = cluster_sum.view({s.K, s.D}),
                        .counts = counts.view(),
                        .sums = sums.view({s.K, s.D}),
                        .poisoned = gate.view(),
                        .decay = 0.99f},
            stream);
        return std::tuple(gradient.download(), counted_size.download(), codebook.download(),
                          cluster_size.download(), cluster_sum.download());
      });
}

namespace {

struct RestartCase {
  int64_t N, K, D;
  double dead;  // about this part of the codes
  float threshold = 0.1f;
  int64_t every = 5;
  int32_t poisoned = 0;
  bool optional = true;  // with sums and moments
  bool nan_size = false;
};

// Codebook, sizes, sums, both moments and the number of replaced codes.
auto restart(auto place, const RestartCase& c) {
  std::vector<float> sizes = normal_floats(c.K, 1);
  const auto draws = random_integers(c.K, 1000, 2);
  for (size_t k = 0; k < sizes.size(); ++k)
    sizes[k] = double(draws[k]) < 1000.0 * c.dead ? 0.0f : std::abs(sizes[k]) + 0.2f;
  if (c.nan_size) sizes[sizes.size() / 2] = kNan;
  auto codebook = place.array(normal_floats(c.K * c.D, 3), 1), cluster_size = place.array(sizes, 1),
       cluster_sum = place.array(normal_floats(c.K * c.D, 4), 1),
       moment1 = place.array(normal_floats(c.K * c.D, 5), 1),
       moment2 = place.array(normal_floats(c.K * c.D, 6), 1),
       latents = place.array(normal_floats(c.N * c.D, 7), 1);
  auto replaced = place.array(std::vector<int32_t>{-1}, 1),
       poisoned = place.array(std::vector<int32_t>{c.poisoned}, 1);
  auto state = place.array(std::vector<StepState>{{.step = 4}});
  const auto optional = [&](auto& array) { return c.optional ? array.view({c.K, c.D}) : View<float>(); };
  run(RestartOp{.codebook = codebook.view({c.K, c.D}),
                .cluster_size = cluster_size.view(),
                .cluster_sum = optional(cluster_sum),
                .moment1 = optional(moment1),
                .moment2 = optional(moment2),
                .replaced = replaced.view(),
                .latents = latents.view({c.N, c.D}),
                .state = state.view(),
                .poisoned = poisoned.view(),
                .threshold = c.threshold,
                .every = c.every,
                .seed = 7},
      place.stream());
  return std::tuple(codebook.download(), cluster_size.download(), cluster_sum.download(), moment1.download(),
                    moment2.download(), replaced.download());
}

}  // namespace

TEST_CASE("device: restart replaces the same codes by the same latents as on the CPU", "[kernels]") {
  for (const RestartCase& c :
       std::vector<RestartCase>{{.N = 1, .K = 1, .D = 1, .dead = 1.0},
                                {.N = 64, .K = 80, .D = 3, .dead = 0.7},
                                {.N = 7, .K = 300, .D = 33, .dead = 0.3},
                                {.N = 300, .K = 513, .D = 5, .dead = 0.9},
                                {.N = 255, .K = 700, .D = 4, .dead = 0.5},
                                {.N = 64, .K = 257, .D = 2, .dead = 0.0},
                                {.N = 64, .K = 80, .D = 3, .dead = 0.7, .threshold = 0.0f},
                                {.N = 64, .K = 80, .D = 3, .dead = 0.7, .every = 4},
                                {.N = 64, .K = 80, .D = 3, .dead = 0.7, .poisoned = 1},
                                {.N = 64, .K = 80, .D = 3, .dead = 0.7, .optional = false},
                                {.N = 64, .K = 80, .D = 3, .dead = 0.7, .nan_size = true}})
    require_same_on_both("N " + std::to_string(c.N) + ", K " + std::to_string(c.K),
                         [&](auto place) { return restart(place, c); });
}

TEST_CASE("device: restart with more codes than its blocks take at a time", "[kernels]") {
  for (const int64_t N : {1000, 20000}) {
    const RestartCase c{.N = N, .K = 33000, .D = 1, .dead = 0.3};
    const auto expected = restart(OnCpu{}, c), actual = restart(OnDevice{}, c);
    require_same(std::get<0>(actual), std::get<0>(expected), "codebook");
    require_same(std::get<1>(actual), std::get<1>(expected), "cluster_size");
    require_same(std::get<5>(actual), std::get<5>(expected), "replaced");
  }
}

namespace {

// All but the perplexity after three calls, between which the codebook changes, then the perplexities.
template <class Place>
auto health_of(const Place& place, const Sizes& s, int32_t poisoned, bool zero) {
  auto code_values = zero ? zeros(s.K * s.D) : normal_floats(s.K * s.D, 1);
  std::vector<float> sizes = normal_floats(s.K, 2);
  for (float& size : sizes) size = std::abs(size);
  auto age = place.array(random_integers(s.K, 100, 3), s.offset);
  auto previous = place.array(code_values, s.offset), cluster_size = place.array(sizes, s.offset),
       scratch = place.array(zeros(2 * s.K), s.offset);
  auto gate = place.array(std::vector<int32_t>{poisoned}, s.offset);
  auto health = place.array(std::vector<CodebookHealth>(1));
  std::vector<float> numbers, perplexities;
  for (int call = 0; call < 3; ++call) {
    auto codebook = place.array(code_values, s.offset);
    auto counts = place.array(random_integers(s.K, call == 2 ? 1 : 4, uint64_t(10 + call)), s.offset);
    run(CodebookHealthOp{.health = health.view(),
                         .age = age.view(),
                         .previous = previous.view({s.K, s.D}),
                         .codebook = codebook.view({s.K, s.D}),
                         .counts = counts.view(),
                         .cluster_size = cluster_size.view(),
                         .poisoned = gate.view(),
                         .threshold = 0.5f,
                         .scratch = scratch.view()},
        place.stream());
    const CodebookHealth h = health.download()[0];
    for (const float number : {float(h.used), float(h.dead), h.mean_age, h.mean_norm, h.drift})
      numbers.push_back(number);
    perplexities.push_back(h.perplexity);
    if (!zero) code_values[size_t(call) % code_values.size()] += 0.5f;
  }
  return std::tuple(numbers, age.download(), previous.download(), perplexities);
}

}  // namespace

TEST_CASE("device: health equals the CPU, the perplexity to the last place but one", "[kernels]") {
  for (const Sizes& s : std::vector<Sizes>{{0, 1, 1, 0},
                                           {0, 31, 3, 1},
                                           {0, 33, 32, 0},
                                           {0, 65, 33, 1},
                                           {0, 300, 65, 0},
                                           {0, 1000, 8, 1},
                                           {0, 2, 300, 0}})
    for (const auto& [poisoned, zero] : {std::pair(0, false), std::pair(1, false), std::pair(0, true)}) {
      const auto expected = health_of(OnCpu{}, s, poisoned, zero);
      for_each_schedule([&, poisoned = poisoned, zero = zero] {
        const auto actual = health_of(OnDevice{}, s, poisoned, zero);
        require_same(std::get<0>(actual), std::get<0>(expected), s.text() + ": numbers");
        require_same(std::get<1>(actual), std::get<1>(expected), s.text() + ": age");
        require_same(std::get<2>(actual), std::get<2>(expected), s.text() + ": previous");
        // A few units of a double apart: at most a neighbouring float.
        for (size_t i = 0; i < std::get<3>(expected).size(); ++i) {
          const float value = std::get<3>(expected)[i];
          CHECK(std::abs(std::get<3>(actual)[i] - value) <= value * std::numeric_limits<float>::epsilon());
        }
      });
    }
}

}  // namespace vqlab::testing
