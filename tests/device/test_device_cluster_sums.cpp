// Every variant of the cluster sums on the device, alone and with quantized latents beside: exact ones to the
// bits of the CPU, the others within what ClusterSumsOp promises.
#include <algorithm>
#include <array>
#include <cmath>

#include "codebook_problems.hpp"
#include "device_testing.hpp"
#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "on_both.hpp"

namespace vqlab::testing {
namespace {

struct Result {
  std::vector<int32_t> counts;
  std::vector<float> sums, quantized, distance;
};

// Without a variant the place's default. Operands lie `offset` elements off alignment, the scratch 3 bytes.
template <class Place>
Result run_on(Place place, const Problem& p, bool quantizing, int64_t offset,
              const ClusterSumsVariant* variant = nullptr) {
  auto latents = place.array(p.latents, offset), codebook = place.array(p.codebook, offset);
  auto codes = place.array(p.codes, offset);
  auto counts = place.array(std::vector<int32_t>(size_t(p.K), -1), offset);
  auto sums = place.array(poison(p.K * p.D), offset), quantized = place.array(poison(p.N * p.D), offset),
       distance = place.array(poison(1), offset);
  auto scratch = place.array(
      std::vector<std::byte>(size_t(cluster_sums_scratch_bytes(place.stream().device, p.N, p.K, p.D))), 3);
  ClusterSumsOp op{.counts = counts.view(),
                   .sums = sums.view({p.K, p.D}),
                   .latents = latents.view({p.N, p.D}),
                   .codes = codes.view(),
                   .scratch = scratch.view(),
                   .variant = variant};
  if (quantizing) {
    op.quantized = quantized.view({p.N, p.D});
    op.distance = distance.view();
    op.codebook = codebook.view({p.K, p.D});
  }
  run(op, place.stream());
  scratch.download();
  if (!quantizing) return {counts.download(), sums.download(), {}, {}};
  return {counts.download(), sums.download(), quantized.download(), distance.download()};
}

void require_bits(const Result& found, const Result& expected, const std::string& what) {
  require_same(found.counts, expected.counts, what + ", counts");
  require_same(found.sums, expected.sums, what + ", sums");
  require_same(found.quantized, expected.quantized, what + ", quantized");
  require_same(found.distance, expected.distance, what + ", distance");
}

// What ClusterSumsOp says of variants that are not exact, against the sums in double; they quantize by
// StraightThroughOp.
void require_promised(const Result& found, const Problem& p, const std::string& what) {
  std::vector<double> sums(size_t(p.K * p.D)), absolute(sums);
  std::vector<int32_t> counts(size_t(p.K));
  double largest = 0.0;
  for (int64_t i = 0; i < p.N * p.D; ++i) {
    const size_t at = size_t(p.codes[size_t(i / p.D)] * p.D + i % p.D);
    const double x = double(p.latents[size_t(i)]);
    sums[at] += x, absolute[at] += std::abs(x), largest = std::max(largest, std::abs(x));
    if (i % p.D == 0) ++counts[size_t(p.codes[size_t(i / p.D)])];
  }
  require_same(found.counts, counts, what + ", counts");
  for (size_t i = 0; i < sums.size(); ++i) {
    const double rows = double(counts[i / size_t(p.D)]);
    const double bound = 1.01 * std::max(0.0, rows - 1.0) * 0x1p-24 * absolute[i] + rows * 0x1p-27 * largest +
                         0x1p-24 * std::abs(sums[i]);
    INFO(what << ", sum " << i);
    REQUIRE(std::abs(double(found.sums[i]) - sums[i]) <= bound);
  }
}

std::string name_of(const Problem& p, const char* rest) {
  return "N " + std::to_string(p.N) + ", K " + std::to_string(p.K) + ", D " + std::to_string(p.D) + ", " +
         rest;
}

void require_every_variant(const Problem& p, int64_t offset, const char* what) {
  const Result alone = run_on(OnCpu{}, p, false, 0), beside = run_on(OnCpu{}, p, p.N > 0, 0);
  for (const ClusterSumsVariant* variant : cluster_sums_variants(Device::cuda)) {
    if (!variant->supports(p.N, p.K, p.D)) continue;
    for (const bool quantizing : {false, true}) {
      if (quantizing && p.N == 0) continue;  // of no rows nothing is quantized
      const Result& expected = quantizing ? beside : alone;
      const Result found = run_on(OnDevice{}, p, quantizing, offset, variant);
      const std::string text = std::string(variant->name) + ", " + name_of(p, what);
      if (variant->exact) {
        require_bits(found, expected, text);
      } else {
        require_promised(found, p, text);
        require_same(found.quantized, expected.quantized, text + ", quantized");
      }
    }
  }
}

const ClusterSumsVariant& variant(const char* name) { return find_cluster_sums_variant(Device::cuda, name); }

}  // namespace

TEST_CASE("device: every variant of the cluster sums at every shape", "[kernels]") {
  struct Shape {
    int64_t N, K, D, offset;
  };
  for (const Shape& s : std::initializer_list<Shape>{{0, 3, 4, 1},
                                                     {1, 1, 1, 0},
                                                     {127, 1, 3, 1},
                                                     {128, 2, 8, 0},
                                                     {129, 2, 64, 0},
                                                     {129, 2, 64, 1},
                                                     {257, 512, 5, 1},
                                                     {1000, 511, 65, 0},
                                                     {40, 3000, 2, 1},
                                                     {300, 7, 256, 0},
                                                     {140, 128, 300, 1}})
    for_few_schedules([&] { require_every_variant(Problem(s.N, s.K, s.D), s.offset, "even"); });
}

TEST_CASE("device: every variant of the cluster sums with skewed and empty codes", "[kernels]") {
  for (const auto& [N, K, D, offset] :
       {std::array<int64_t, 4>{2600, 40, 8, 0}, {1500, 65, 36, 1}, {700, 1, 17, 0}})
    for (const CodesOfRows& of : kCodesOfRows) {
      Problem p(N, K, D);
      p.codes = codes_of_rows(of, N, K, 8);
      for_few_schedules([&, shift = offset] { require_every_variant(p, shift, of.name); });
    }
}

TEST_CASE("device: cluster sums under every schedule", "[kernels]") {
  Problem p(1400, 6, 5);
  p.codes = codes_of_rows(kCodesOfRows[2], p.N, p.K, 8);
  for_each_schedule([&] { require_every_variant(p, 1, "every schedule"); });
}

TEST_CASE("device: NaN, infinities and the ends of the range in exact cluster sums", "[kernels]") {
  for (const auto& [N, K, D] : {std::array<int64_t, 3>{1000, 5, 33}, {300, 20, 4}}) {
    Problem p(N, K, D);
    p.latents = awkward_floats(N * D, 3), p.codebook = awkward_floats(K * D, 5);
    for (const bool quantizing : {false, true}) {
      const Result expected = run_on(OnCpu{}, p, quantizing, 0);
      for_few_schedules([&] {
        for (const char* name : {"per_code", "sorted"})
          require_bits(run_on(OnDevice{}, p, quantizing, 1, &variant(name)), expected, name);
      });
    }
  }
}

TEST_CASE("device: fixed point leaves what it cannot hold to the default", "[kernels]") {
  const Problem ordinary(2500, 9, 7);
  const auto require_default = [](const Problem& p, const char* what) {
    for_few_schedules([&] {
      for (const bool quantizing : {false, true}) {
        const Result expected = run_on(OnCpu{}, p, quantizing, 0);
        const Result found = run_on(OnDevice{}, p, quantizing, 0, &variant("fixed_point"));
        require_same(found.counts, expected.counts, what);
        require_same(found.sums, expected.sums, what);
        require_same(found.quantized, expected.quantized, what);
      }
    });
  };
  // Row 1204 is none of the 256 that are sampled.
  for (const float value : {kNan, kInf, -kInf, 1e6f, -1e30f}) {
    Problem p = ordinary;
    p.latents[size_t(1204 * p.D + 3)] = value;
    require_default(p, "one latent beyond the scale");
  }
  for (const float scale : {0.0f, 1e-38f, 1e38f}) {  // a sample without a scale
    Problem p = ordinary;
    for (float& x : p.latents) x *= scale;
    require_default(p, "no scale");
  }
}

TEST_CASE("device: fixed point gives the same bits for rows in any order", "[kernels]") {
  Problem p(3000, 11, 5);
  for (int64_t n = 0; n < p.N; ++n) p.latents[size_t(n * p.D)] = 5.0f;  // alike in every sample
  p.codes = codes_of_rows(kCodesOfRows[1], p.N, p.K, 8);
  Problem turned = p;
  for (int64_t n = 0; n < p.N; ++n) {
    const int64_t from = (n * 1009 + 77) % p.N;  // 1009 is prime
    turned.codes[size_t(n)] = p.codes[size_t(from)];
    std::copy_n(p.latents.begin() + from * p.D, p.D, turned.latents.begin() + n * p.D);
  }
  const Result sorted = run_on(OnCpu{}, p, false, 0), other = run_on(OnCpu{}, turned, false, 0);
  CHECK(sorted.sums != other.sums);  // which sums of floats do not
  const Result expected = run_on(OnDevice{}, p, false, 0, &variant("fixed_point"));
  for_each_schedule([&] {
    require_bits(run_on(OnDevice{}, turned, false, 1, &variant("fixed_point")), expected, "in another order");
  });
}

TEST_CASE("device: one hot keeps NaN in its own code", "[kernels]") {
  Problem p(200, 40, 6);
  const Result clean = run_on(OnDevice{}, p, false, 0, &variant("one_hot"));
  p.latents[size_t(77 * p.D + 2)] = kNan;
  const size_t at = size_t(p.codes[77] * p.D + 2);
  const Result found = run_on(OnDevice{}, p, false, 0, &variant("one_hot"));
  for (size_t i = 0; i < found.sums.size(); ++i)
    CHECK((i == at ? std::isnan(found.sums[i]) : found.sums[i] == clean.sums[i]));
}

TEST_CASE("device: variants of the cluster sums refuse by rule what they cannot do", "[kernels][bad-input]") {
  CHECK(variant("sorted").supports(int64_t(1) << 30, int64_t(1) << 30, 4096));
  CHECK(variant("atomic").supports(int64_t(1) << 30, int64_t(1) << 30, 4096));
  CHECK(variant("per_code").supports(16384, 1024, 4096));
  CHECK(!variant("per_code").supports(16385, 1, 1));
  CHECK(!variant("per_code").supports(16384, 1025, 1));
  CHECK(variant("fixed_point").supports(int64_t(1) << 30, 1408, 4096));
  CHECK(!variant("fixed_point").supports(1, 1409, 1));
  CHECK(variant("one_hot").supports(int64_t(1) << 30, 128, 4096));
  CHECK(!variant("one_hot").supports(1, 129, 1));
  CHECK_THROWS_AS(run_on(OnDevice{}, Problem(3, 129, 2), false, 0, &variant("one_hot")), Error);
}

TEST_CASE("device: both gradients in one launch have the bits of the CPU", "[kernels]") {
  for (const auto& [N, K, D, offset] :
       {std::array<int64_t, 4>{1, 1, 1, 1}, {100, 7, 8, 0}, {70, 300, 33, 1}, {0, 5, 4, 0}, {20, 1100, 4, 0}})
    require_same_on_both(text({N, K, D}), [&, N = N, K = K, D = D, offset = offset](auto place) {
      const Problem p(N, K, D);
      auto latents = place.array(awkward_floats(N * D, 1), offset),
           codebook = place.array(awkward_floats(K * D, 2), offset),
           d_quantized = place.array(awkward_floats(N * D, 4), offset),
           sums = place.array(awkward_floats(K * D, 5), offset),
           d_latents = place.array(poison(N * D), offset), d_codebook = place.array(poison(K * D), offset);
      auto codes = place.array(p.codes, offset),
           counts = place.array(std::vector<int32_t>(size_t(K), 3), offset);
      run(StraightThroughBackwardOp{.d_latents = d_latents.view({N, D}),
                                    .d_quantized = d_quantized.view({N, D}),
                                    .latents = latents.view({N, D}),
                                    .codebook = codebook.view({K, D}),
                                    .codes = codes.view(),
                                    .commitment_scale = 0.37f,
                                    .d_codebook = d_codebook.view({K, D}),
                                    .counts = counts.view(),
                                    .sums = sums.view({K, D}),
                                    .codebook_scale = 0.21f},
          place.stream());
      return std::tuple(d_latents.download(), d_codebook.download());
    });
}

}  // namespace vqlab::testing
