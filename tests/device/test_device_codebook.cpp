// The lookup and k-means on the device: equal to the CPU, bit for bit.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "device_testing.hpp"
#include "kernels/codebook/kmeans.hpp"
#include "kernels/codebook/lookup.hpp"
#include "kernels/core/prim.hpp"
#include "lookup_problems.hpp"
#include "on_both.hpp"
#include "quantizer_shapes.hpp"

namespace vqlab::testing {
namespace {

using Problem = LookupProblem;

struct Found {
  std::vector<int32_t> codes, first_bad_row;
};

// What the definition says: the variant `oracle` of the CPU.
Found expected_codes(Problem p) {
  Found found{std::vector<int32_t>(size_t(p.N)), {0}};
  run(LookupOp{.codes = {found.codes.data(), {p.N}},
               .first_bad_row = {found.first_bad_row.data(), {1}},
               .latents = {p.latents.data(), {p.N, p.D}},
               .codebook = {p.codebook.data(), {p.K, p.D}},
               .scratch = {nullptr, {lookup_scratch_bytes(Device::cpu, p.N, p.K, p.D)}},
               .variant = &find_lookup_variant(Device::cpu, "oracle")},
      Stream{});
  return found;
}

// Runs one variant, all operands `offset` elements off alignment, with exactly the scratch that is asked for.
Found run_variant(const LookupVariant& variant, const Problem& p, int64_t offset) {
  DeviceArray<float> latents(p.latents, offset), codebook(p.codebook, offset);
  DeviceArray<int32_t> codes(p.N, offset), first_bad_row(1, offset);
  DeviceScratch scratch(lookup_scratch_bytes(Device::cuda, p.N, p.K, p.D), offset);
  run(LookupOp{.codes = codes.view(),
               .first_bad_row = first_bad_row.view(),
               .latents = latents.view({p.N, p.D}),
               .codebook = codebook.view({p.K, p.D}),
               .scratch = scratch.view(),
               .variant = &variant},
      device_stream());
  scratch.check_bands();
  return {codes.download(), first_bad_row.download()};
}

// Every variant that supports the shape finds these codes; or the one named.
void require_found(const Problem& p, const Found& expected, int64_t offset, std::string_view only = "") {
  for (const LookupVariant* variant : lookup_variants(Device::cuda)) {
    if (!variant->supports(p.N, p.K, p.D) || (!only.empty() && only != variant->name)) continue;
    const Found found = run_variant(*variant, p, offset);
    const std::string what = std::string(variant->name) + ", N " + std::to_string(p.N) + ", K " +
                             std::to_string(p.K) + ", D " + std::to_string(p.D) + ", offset " +
                             std::to_string(offset);
    require_same(found.codes, expected.codes, what);
    require_same(found.first_bad_row, expected.first_bad_row, what + ", first bad row");
  }
}

void require_exact(const Problem& p, int64_t offset = 1, std::string_view only = "") {
  const Found expected = expected_codes(p);
  for_few_schedules([&] { require_found(p, expected, offset, only); });
}

// The shapes with N in [least, most].
void require_exact_at_shapes(int64_t least, int64_t most) {
  uint64_t seed = 0;
  for (const QuantizerShape& s : kQuantizerShapes) {
    seed += 2;
    if (least <= s.N && s.N <= most) require_exact(gaussian(s.N, s.K, s.D, seed), s.offset);
  }
}

// Codes below K: evenly spread, or `share` of them in code K / 2.
std::vector<int32_t> random_codes(int64_t N, int64_t K, double share, uint64_t seed) {
  std::vector<int32_t> codes(size_t(N), 0);
  for (size_t n = 0; n < codes.size(); ++n) {
    const auto bits = random_bits({.seed = seed}, n);
    codes[n] = int32_t(double(bits.v[0]) * 0x1p-32 < share ? K / 2 : bits.v[1] % uint32_t(K));
  }
  return codes;
}

}  // namespace

TEST_CASE("device: every lookup variant equals score64 at every shape of few rows", "[kernels]") {
  require_exact_at_shapes(1, 127);
}

TEST_CASE("device: every lookup variant equals score64 at every shape of a tile of rows", "[kernels]") {
  require_exact_at_shapes(128, 129);
}

TEST_CASE("device: every lookup variant equals score64 at every shape of many rows", "[kernels]") {
  require_exact_at_shapes(130, 1 << 20);
}

TEST_CASE("device: lookups under every schedule", "[kernels]") {
  for (const auto& [N, K, D] : {std::array<int64_t, 3>{70, 300, 24}, {33, 17, 5}}) {
    Problem p = tied(N, K, D, 7);
    p.latents[size_t(20 * D)] = kNan, p.latents[size_t(9 * D + 1)] = kInf;
    const Found expected = expected_codes(p);
    CHECK(expected.first_bad_row[0] == 9);
    for_each_schedule([&] { require_found(p, expected, 0); });
  }
}

TEST_CASE("device: lookups of many rows take larger tiles", "[kernels]") {
  for (const char* variant : {"simt_tiled", "simt_fp32"}) {
    require_exact(gaussian(16384 + 77, 130, 8, 21), 0, variant);  // several tiles, aligned
    require_exact(gaussian(16384, 20, 17, 22), 1, variant);       // several slabs, with a rest
  }
  require_exact(gaussian(65536 + 77, 9, 3, 24), 1, "tiny_d");
}

TEST_CASE("device: a lookup whose blocks take several tiles of rows", "[kernels]") {
  require_exact(gaussian(2500, 130, 8, 25), 0, "cb_resident");  // two rows of products to a warp, aligned
  require_exact(gaussian(1100, 70, 33, 26), 1, "cb_resident");
  require_exact(gaussian(600, 65, 100, 27), 0, "cb_resident");  // one
}

TEST_CASE("device: a tensor-core lookup whose rows come in slabs", "[kernels]") {
  require_exact(gaussian(150, 140, 272, 28), 0, "mma_sync");
  require_exact(gaussian(20, 3, 513, 29), 1, "mma_sync");
}

TEST_CASE("device: rounding to fp16 in several waves of blocks", "[kernels]") {
  require_exact(gaussian(3, 17000, 2, 30), 1, "tiny_d");
  require_exact(gaussian(17000, 3, 1, 31), 1, "wgmma_plain");
}

TEST_CASE("device: latents of very different sizes side by side", "[kernels]") {
  for (int64_t D : {3, 40}) {
    Problem p = gaussian(150, 60, D, 32);
    for (size_t i = 0; i < p.latents.size(); ++i)
      p.latents[i] = std::ldexp(p.latents[i], int(int64_t(i) / D * 7 % 60) - 30);
    require_exact(p);
    p.latents[size_t(20 * D)] = 3e38f, p.latents[size_t(21 * D)] = -kInf;
    require_exact(p);
  }
}

TEST_CASE("device: lookups refuse shapes by rule", "[kernels]") {
  const auto supports = [](const char* name, int64_t N, int64_t K, int64_t D) {
    return find_lookup_variant(Device::cuda, name).supports(N, K, D);
  };
  CHECK(supports("tiny_d", 1, 1, 16));
  CHECK(!supports("tiny_d", 1, 1, 17));
  CHECK(!supports("tiny_d", 1, (int64_t(1) << 30) + 1, 16));
  CHECK(supports("cb_resident", 1, 512, 64));
  CHECK(!supports("cb_resident", 1, 1, 129));
  CHECK(!supports("cb_resident", 1, 8192, 64));
  CHECK(!supports("cb_resident", 1, (int64_t(1) << 30) + 1, 1));
  CHECK(supports("mma_sync", 1, 1, 4096));
  CHECK(!supports("mma_sync", 1, 1, (int64_t(1) << 20) + 1));
  CHECK(supports("simt_fp32", 1, 1 << 20, 1 << 20));
  CHECK(!supports("simt_fp32", 1, 1, (int64_t(1) << 24) + 1));
}

TEST_CASE("device: a lookup in pieces of the product", "[kernels]") {
  Problem p = gaussian(131, 65537, 1, 23);  // 34 MB of scores
  p.latents[130] = kNan;                    // in the second piece
  CHECK(expected_codes(p).first_bad_row[0] == 130);
  require_exact(p, 1, "gemm");
}

TEST_CASE("device: a common offset that swamps fp32 scores", "[kernels]") {
  const auto far_away = [](int64_t N, int64_t K, int64_t D) {
    Problem p = gaussian(N, K, D, 5);
    for (float& x : p.latents) x += 3000.0f;
    for (float& c : p.codebook) c += 3000.0f;
    return p;
  };
  const Problem many = far_away(9001, 6, 3);  // more rows in doubt than one wave of the recheck takes
  const Found expected = expected_codes(many);
  for_each_schedule([&] { require_found(many, expected, 1, "simt_tiled"); });
  require_exact(far_away(40, 6, 300));  // more dimensions than it holds at a time
  require_exact(far_away(100, 200, 8));
}

TEST_CASE("device: lookup ties take the lowest code", "[kernels]") {
  for (const auto& [N, K, D] :
       {std::array<int64_t, 3>{100, 64, 2}, {129, 130, 4}, {60, 18, 3}, {33, 1001, 1}, {20, 2100, 16}})
    require_exact(tied(N, K, D, uint64_t(K)));
}

TEST_CASE("device: codes that differ in the last bit are told apart", "[kernels]") {
  for (int64_t distance : {1, 2, 8, 40})
    require_exact(nearly_tied(100, 96, 16, distance, uint64_t(distance)));
}

TEST_CASE("device: lookups of huge and tiny magnitudes", "[kernels]") {
  for (float scale : {1e38f, 1e30f, 1e19f, 1e10f, 1e-10f, 1e-19f, 1e-23f, 1e-30f, 1e-38f, 1e-43f})
    require_exact(gaussian(40, 30, 5, 9, scale));
  for (float scale : {1e30f, 1e15f, 1e-15f, 1e-40f}) {
    Problem p = gaussian(40, 30, 5, 10);
    for (float& x : p.latents) x *= scale;
    require_exact(p);
    std::swap(p.latents, p.codebook), std::swap(p.N, p.K);
    for (size_t i = 0; i < 5; ++i) p.latents[i] = 1.0f;  // rows of both kinds in one tile
    require_exact(p);
  }
  // In fp32 the score of code 6 passes -4.8e38, beyond the range; its value, -3.0e38, is the largest.
  Problem p{1, 7, 2, {1e19f, 1e19f}, {0.0f, -1.72e19f}};
  for (int64_t k = 1; k < 6; ++k) p.codebook.insert(p.codebook.end(), {0.0f, -1.75e19f});
  p.codebook.insert(p.codebook.end(), {-1.7e19f, 1.8e19f});
  CHECK(expected_codes(p).codes == std::vector<int32_t>{6});
  require_exact(p);
}

TEST_CASE("device: rounding errors of a lookup that all point the same way", "[kernels]") {
  // Every product but the first is just under half an ulp of the score and is lost: positive ones of code 13,
  // negative ones of code 40, which therefore leads in fp32 (tests/test_lookup.cpp has the figures).
  const int64_t D = 256, K = 60;
  const float lost = 0.99f * 0x1p-14f, X = 1025.0f, other = X / 16.0f;
  Problem p{1, K, D, std::vector<float>(size_t(D), other), std::vector<float>(size_t(K * D), 0.0f)};
  p.latents[0] = X;
  const float lead = 1.8f * float(D - 1) * 0x1p-14f;
  for (int64_t d = 0; d < D; ++d) {
    p.codebook[size_t(13 * D + d)] = d == 0 ? 1.0f : lost / other;
    p.codebook[size_t(40 * D + d)] = d == 0 ? 1.0f + lead / X : -lost / other;
  }
  CHECK(expected_codes(p).codes == std::vector<int32_t>{13});
  require_exact(p);
}

TEST_CASE("device: lookups of constant latents and constant codes", "[kernels]") {
  const Problem p = gaussian(50, 300, 7, 11);
  Problem same_latents = p, same_codes = p, zero = p;
  for (size_t i = 0; i < same_latents.latents.size(); ++i) same_latents.latents[i] = p.latents[i % 7];
  for (size_t i = 0; i < same_codes.codebook.size(); ++i) same_codes.codebook[i] = p.codebook[i % 7];
  std::fill(zero.latents.begin(), zero.latents.end(), 0.0f);
  std::fill(zero.codebook.begin(), zero.codebook.end(), -0.0f);
  require_exact(same_latents);
  require_exact(same_codes);
  require_exact(zero);
  same_codes.codebook.back() = std::nextafter(same_codes.codebook.back(), kInf);
  require_exact(same_codes);
}

TEST_CASE("device: latents that are not finite get code 0 and the first is reported", "[kernels]") {
  Problem p = gaussian(300, 77, 9, 12);
  int32_t first = 300;
  for (const auto& [row, d, value] : {std::tuple<int32_t, int, float>{299, 8, kNan},
                                      {131, 0, -kInf},
                                      {130, 4, kInf},
                                      {3, 8, kNan},
                                      {0, 0, kInf}}) {
    p.latents[size_t(row * 9 + d)] = value;
    first = std::min(first, row);
    CHECK(expected_codes(p).first_bad_row[0] == first);
    require_exact(p);
  }
}

TEST_CASE("device: the default lookup and its refusals", "[kernels][bad-input]") {
  const Problem p = gaussian(40, 12, 8, 13);
  DeviceArray<float> latents(p.latents), codebook(p.codebook);
  DeviceArray<int32_t> codes(p.N), first_bad_row(1);
  DeviceScratch scratch(lookup_scratch_bytes(Device::cuda, p.N, p.K, p.D));
  LookupOp op{.codes = codes.view(),
              .first_bad_row = first_bad_row.view(),
              .latents = latents.view({p.N, p.D}),
              .codebook = codebook.view({p.K, p.D}),
              .scratch = scratch.view()};
  run(op, device_stream());
  require_same(codes.download(), expected_codes(p).codes, "default variant");
  CHECK(lookup_variants(Device::cuda).back()->supports(1'000'000'000, 1'000'000'000, 1'000'000));
  for (const LookupVariant* variant : lookup_variants(Device::cuda)) {
    CHECK(variant->exact);
    CHECK(&find_lookup_variant(Device::cuda, variant->name) == variant);
  }
  op.variant = &find_lookup_variant(Device::cpu, "oracle");
  CHECK_THROWS_AS(run(op, device_stream()), Error);
  op.variant = nullptr;
  op.scratch.dim[0] -= 1;
  CHECK_THROWS_AS(run(op, device_stream()), Error);
}

TEST_CASE("device: pairs are sorted by the bits of their keys and stay in order", "[kernels]") {
  for (const auto& [count, bits] : {std::array<int64_t, 2>{1, 1}, {2, 1}, {31, 3}, {1000, 9}, {5000, 20}}) {
    const std::vector<int32_t> keys = random_codes(count, int64_t(1) << bits, 0.3, 31);
    std::vector<int32_t> values(keys.size()), order(keys.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = int32_t(7 * i) - 100;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return keys[size_t(a)] < keys[size_t(b)]; });
    std::vector<int32_t> sorted_keys, sorted_values;
    for (int32_t i : order) {
      sorted_keys.push_back(keys[size_t(i)]);
      sorted_values.push_back(values[size_t(i)]);
    }
    for_each_schedule([&, count = count, bits = bits] {
      DeviceArray<int32_t> keys_in(keys, 1), values_in(values, 1), keys_out(count, 1), values_out(count, 1);
      DeviceScratch scratch(sort_pairs_scratch_bytes(count, int(bits)));
      sort_pairs(keys_out.data(), values_out.data(), keys_in.data(), values_in.data(), count, int(bits),
                 scratch.view(), device_stream());
      require_same(keys_out.download(), sorted_keys, "keys");
      require_same(values_out.download(), sorted_values, "values");
      scratch.check_bands();
    });
  }
}

TEST_CASE("device: kmeans has the bits of the CPU", "[kernels]") {
  struct Case {
    int64_t N, K, D;
    int rounds;
  };
  for (const Case& c : std::initializer_list<Case>{
           {1, 1, 1, 1}, {200, 16, 4, 3}, {7, 20, 3, 2}, {600, 2, 65, 2}, {129, 130, 8, 2}})
    for (const bool bad : {false, true})
      require_same_on_both(
          "kmeans, N " + std::to_string(c.N) + ", K " + std::to_string(c.K) + ", D " + std::to_string(c.D),
          [&](auto place) {
            std::vector<float> values = normal_floats(c.N * c.D, 5);
            if (bad) values[size_t(c.N / 2 * c.D)] = kInf;
            auto latents = place.array(values, 1);
            auto codebook = place.array(std::vector<float>(size_t(c.K * c.D), kNan), 1),
                 cluster_size = place.array(std::vector<float>(size_t(c.K), kNan), 1),
                 cluster_sum = place.array(std::vector<float>(size_t(c.K * c.D), kNan), 1);
            auto first_bad_row = place.array(std::vector<int32_t>(1, 5), 1);
            auto scratch = place.array(
                std::vector<std::byte>(size_t(kmeans_scratch_bytes(place.stream().device, c.N, c.K, c.D))),
                3);
            run(KMeansOp{.codebook = codebook.view({c.K, c.D}),
                         .cluster_size = cluster_size.view(),
                         .cluster_sum = cluster_sum.view({c.K, c.D}),
                         .first_bad_row = first_bad_row.view(),
                         .latents = latents.view({c.N, c.D}),
                         .key = {.seed = 3, .step = 0, .use = RandomUse::kmeans, .tensor = 0},
                         .rounds = c.rounds,
                         .count_scale = 0.25f,
                         .scratch = scratch.view()},
                place.stream());
            scratch.download();
            return std::tuple(codebook.download(), cluster_size.download(), cluster_sum.download(),
                              first_bad_row.download());
          });
}

}  // namespace vqlab::testing
