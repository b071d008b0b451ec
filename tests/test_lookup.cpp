#include <rapidcheck.h>

#include <cmath>
#include <limits>

#include "hwy/targets.h"
#include "kernels/codebook/lookup.hpp"
#include "kernels/core/names.hpp"
#include "kernels/core/parallel.hpp"
#include "lookup_problems.hpp"
#include "testing.hpp"

namespace vqlab {
namespace {

using testing::Guarded;
using testing::normal_floats;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

using Problem = testing::LookupProblem;
using testing::gaussian, testing::nearly_tied, testing::tied;

// The definition, written again: squared distances in double, the lowest code at the minimum. `ties` counts
// the latents whose minimum is attained by several codes.
std::vector<int32_t> nearest_codes(const Problem& p, int64_t* ties = nullptr) {
  std::vector<int32_t> codes;
  for (int64_t n = 0; n < p.N; ++n) {
    double nearest = std::numeric_limits<double>::infinity();
    int32_t code = 0;
    bool tied = false;
    for (int64_t k = 0; k < p.K; ++k) {
      double distance = 0.0;
      for (int64_t d = 0; d < p.D; ++d) {
        const double difference =
            double(p.latents[size_t(n * p.D + d)]) - double(p.codebook[size_t(k * p.D + d)]);
        distance += difference * difference;
      }
      if (distance == nearest) tied = true;
      if (distance < nearest) nearest = distance, code = int32_t(k), tied = false;
    }
    codes.push_back(code);
    if (ties && tied) ++*ties;
  }
  return codes;
}

// What fp32 alone would choose: the largest -|c|^2 / 2 + x.c, added in this order.
std::vector<int32_t> fp32_codes(const Problem& p) {
  std::vector<int32_t> codes;
  for (int64_t n = 0; n < p.N; ++n) {
    float best = -kInf;
    int32_t code = 0;
    for (int64_t k = 0; k < p.K; ++k) {
      float square = 0.0f;
      for (int64_t d = 0; d < p.D; ++d)
        square += p.codebook[size_t(k * p.D + d)] * p.codebook[size_t(k * p.D + d)];
      float score = -0.5f * square;
      for (int64_t d = 0; d < p.D; ++d)
        score += p.latents[size_t(n * p.D + d)] * p.codebook[size_t(k * p.D + d)];
      if (score > best) best = score, code = int32_t(k);
    }
    codes.push_back(code);
  }
  return codes;
}

int64_t differences(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
  return count;
}

// Runs one variant on operands that are one element off alignment, between guard bands, with exactly the
// scratch that lookup_scratch_bytes asks for.
std::vector<int32_t> run_variant(const LookupVariant& variant, const Problem& p,
                                 int32_t expected_bad_row = -1) {
  Guarded<float> latents(p.N * p.D, 1), codebook(p.K * p.D, 1);
  std::copy(p.latents.begin(), p.latents.end(), latents.data());
  std::copy(p.codebook.begin(), p.codebook.end(), codebook.data());
  Guarded<int32_t> codes(p.N, 1), first_bad_row(1, 1);
  const int64_t bytes = lookup_scratch_bytes(Device::cpu, p.N, p.K, p.D);
  Guarded<std::byte> scratch(bytes, 1);
  run(LookupOp{.codes = codes.view({p.N}),
               .first_bad_row = first_bad_row.view({1}),
               .latents = latents.view({p.N, p.D}),
               .codebook = codebook.view({p.K, p.D}),
               .scratch = scratch.view({bytes}),
               .variant = &variant},
      Stream{});
  codes.check_guards();
  first_bad_row.check_guards();
  scratch.check_guards();
  CHECK(std::memcmp(latents.data(), p.latents.data(), p.latents.size() * sizeof(float)) == 0);
  CHECK(std::memcmp(codebook.data(), p.codebook.data(), p.codebook.size() * sizeof(float)) == 0);
  CHECK(first_bad_row.data()[0] == expected_bad_row);
  return {codes.data(), codes.data() + p.N};
}

// Every variant that supports the shape gives exactly these codes.
void require_codes(const Problem& p, const std::vector<int32_t>& expected, int32_t expected_bad_row = -1) {
  for (const LookupVariant* variant : lookup_variants(Device::cpu)) {
    if (!variant->supports(p.N, p.K, p.D)) continue;
    INFO("variant " << variant->name << ", N " << p.N << ", K " << p.K << ", D " << p.D);
    const std::vector<int32_t> codes = run_variant(*variant, p, expected_bad_row);
    for (int64_t n = 0; n < p.N; ++n) {
      INFO("row " << n);
      REQUIRE(codes[size_t(n)] == expected[size_t(n)]);
    }
  }
}

void require_exact(const Problem& p) { require_codes(p, nearest_codes(p)); }

}  // namespace

TEST_CASE("lookup: every variant equals score64 at every shape", "[unit]") {
  // All pairs of N and D; K runs through its list, so that each pair with K occurs too. 8192 only where the
  // reference takes well under a second.
  const std::vector<int64_t> Ns = {1, 3, 31, 32, 33, 127, 128, 129, 1000}, Ds = {1, 3, 4, 8, 63, 64, 65, 256},
                             Ks = {1, 2, 511, 512, 8192};
  for (size_t i = 0; i < Ns.size(); ++i)
    for (size_t j = 0; j < Ds.size(); ++j) {
      int64_t K = Ks[(i + j) % Ks.size()];
      if (Ns[i] * K * Ds[j] > 70'000'000) K = 513;
      require_exact(gaussian(Ns[i], K, Ds[j], 100 * i + j));
    }
}

TEST_CASE("lookup: ties take the lowest code", "[unit]") {
  for (const auto& [N, K, D] :
       {std::array<int64_t, 3>{200, 64, 2}, {129, 130, 4}, {300, 18, 3}, {33, 1001, 1}}) {
    const Problem p = tied(N, K, D, uint64_t(K));
    int64_t ties = 0;
    const std::vector<int32_t> expected = nearest_codes(p, &ties);
    CHECK(ties == N);  // every code has a copy, so a wrong tie rule is wrong on every row
    require_codes(p, expected);
  }
}

TEST_CASE("lookup: codes that differ in the last bit are told apart", "[unit]") {
  for (int64_t distance : {1, 2, 8, 40}) {  // within a cell of codes, across two, far apart
    const Problem p = nearly_tied(400, 96, 16, distance, uint64_t(distance));
    const std::vector<int32_t> expected = nearest_codes(p);
    // fp32 scores alone get many of these rows wrong, so the exact second look is what decides.
    CHECK(differences(fp32_codes(p), expected) > p.N / 10);
    require_codes(p, expected);
  }
}

TEST_CASE("lookup: a common offset that swamps fp32 scores", "[unit]") {
  Problem p = gaussian(300, 200, 8, 5);
  for (float& x : p.latents) x += 3000.0f;
  for (float& c : p.codebook) c += 3000.0f;
  const std::vector<int32_t> expected = nearest_codes(p);
  CHECK(differences(fp32_codes(p), expected) > p.N / 10);
  require_codes(p, expected);
}

TEST_CASE("lookup: huge and tiny magnitudes", "[unit]") {
  for (float scale : {1e38f, 1e30f, 1e19f, 1e10f, 1e-10f, 1e-19f, 1e-23f, 1e-30f, 1e-38f, 1e-43f}) {
    INFO("scale " << scale);
    require_exact(gaussian(70, 50, 5, 9, scale));
  }
}

TEST_CASE("lookup: latents and codes of very different sizes", "[unit]") {
  for (float scale : {1e30f, 1e15f, 1e5f, 1e-5f, 1e-15f, 1e-40f}) {
    INFO("scale " << scale);
    Problem p = gaussian(70, 50, 5, 10);
    for (float& x : p.latents) x *= scale;
    require_exact(p);
    std::swap(p.latents, p.codebook), std::swap(p.N, p.K);
    require_exact(p);
    for (size_t i = 0; i < 5; ++i) p.latents[i] = 1.0f;  // rows of both kinds in one tile
    require_exact(p);
  }
}

TEST_CASE("lookup: partial sums that overflow although the score does not", "[unit]") {
  // In fp32 the score of code 6 passes -4.8e38, beyond the range; its value, -3.0e38, is the largest.
  Problem p{1, 7, 2, {1e19f, 1e19f}, {0.0f, -1.72e19f}};
  for (int64_t k = 1; k < 6; ++k) p.codebook.insert(p.codebook.end(), {0.0f, -1.75e19f});
  p.codebook.insert(p.codebook.end(), {-1.7e19f, 1.8e19f});
  require_codes(p, {6});
}

TEST_CASE("lookup: rounding errors that all point the same way", "[unit]") {
  // Every product but the first is just under half an ulp of the score (1024 to 2048) and is lost. Code 13
  // loses positive ones and code 40 negative ones, so in fp32 code 40 leads by 1.8 of the 2 (D - 1) half ulps
  // that it is behind: more than half of the error bound (2 g |x||c|, where |x| = sqrt(2) * 1025).
  const int64_t D = 256, K = 60;
  const float lost = 0.99f * 0x1p-14f, X = 1025.0f, other = X / 16.0f;
  Problem p{1, K, D, std::vector<float>(size_t(D), other), std::vector<float>(size_t(K * D), 0.0f)};
  p.latents[0] = X;
  const float lead = 1.8f * float(D - 1) * 0x1p-14f;
  for (int64_t d = 0; d < D; ++d) {
    p.codebook[size_t(13 * D + d)] = d == 0 ? 1.0f : lost / other;
    p.codebook[size_t(40 * D + d)] = d == 0 ? 1.0f + lead / X : -lost / other;
  }
  CHECK(nearest_codes(p) == std::vector<int32_t>{13});
  CHECK(fp32_codes(p) == std::vector<int32_t>{40});
  require_codes(p, {13});
}

TEST_CASE("lookup: constant latents and constant codes", "[unit]") {
  Problem p = gaussian(200, 300, 7, 11);
  Problem same_latents = p, same_codes = p, zero = p;
  for (size_t i = 0; i < same_latents.latents.size(); ++i) same_latents.latents[i] = p.latents[i % 7];
  for (size_t i = 0; i < same_codes.codebook.size(); ++i) same_codes.codebook[i] = p.codebook[i % 7];
  std::fill(zero.latents.begin(), zero.latents.end(), 0.0f);
  std::fill(zero.codebook.begin(), zero.codebook.end(), -0.0f);
  require_exact(same_latents);
  require_codes(same_codes, std::vector<int32_t>(200, 0));
  require_codes(zero, std::vector<int32_t>(200, 0));
  same_codes.codebook.back() = std::nextafter(same_codes.codebook.back(), kInf);
  require_exact(same_codes);
}

TEST_CASE("lookup: rows with NaN or infinity get code 0 and the first is reported", "[unit]") {
  Problem p = gaussian(300, 77, 9, 12);
  std::vector<int32_t> expected = nearest_codes(p);
  int32_t first = 300;
  const auto spoil = [&](int32_t row, size_t d, float value) {
    p.latents[size_t(row) * 9 + d] = value;
    expected[size_t(row)] = 0;
    first = std::min(first, row);
    require_codes(p, expected, first);
  };
  spoil(299, 8, kNaN);
  spoil(131, 0, -kInf);
  spoil(130, 4, kInf);
  spoil(3, 8, kNaN);
  spoil(0, 0, kInf);
}

TEST_CASE("lookup: equal codes for 1 2 and 3 workers", "[unit]") {
  const int before = worker_count();
  Problem p = tied(8000, 400, 6, 13);  // long enough for all workers to take part
  for (size_t i = 0; i < p.latents.size() / 2; ++i)
    p.latents[i] += 0.01f * float(i % 97);  // rows of both kinds
  p.latents[700 * 6] = p.latents[7900 * 6] = kNaN;
  for (const LookupVariant* variant : lookup_variants(Device::cpu)) {
    set_worker_count(1);
    const std::vector<int32_t> expected = run_variant(*variant, p, 700);
    for (int workers : {2, 3}) {
      set_worker_count(workers);
      CHECK(run_variant(*variant, p, 700) == expected);
    }
  }
  set_worker_count(before);
}

TEST_CASE("lookup: equal codes on every instruction set of this machine", "[unit]") {
  const int64_t all = hwy::SupportedTargets();
  const Problem plain = gaussian(150, 101, 13, 14), ties = tied(150, 101, 13, 15),
                huge = gaussian(150, 101, 2, 16, 1e25f);  // without fused multiply-add: infinity - infinity
  const std::vector<int32_t> plain_codes = nearest_codes(plain), tied_codes = nearest_codes(ties),
                             huge_codes = nearest_codes(huge);
  for (int64_t rest = all; rest != 0; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    INFO(hwy::TargetName(rest & -rest));
    require_codes(plain, plain_codes);
    require_codes(ties, tied_codes);
    require_codes(huge, huge_codes);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

TEST_CASE("lookup: property: equals score64 on small random problems", "[unit]") {
  const bool ok = rc::check([] {
    const int64_t N = *rc::gen::inRange<int64_t>(1, 70), K = *rc::gen::inRange<int64_t>(1, 40),
                  D = *rc::gen::inRange<int64_t>(1, 12);
    const auto seed = *rc::gen::arbitrary<uint32_t>();
    const int exponent = *rc::gen::inRange(-60, 60), kind = *rc::gen::inRange(0, 3);
    Problem p = kind == 0   ? gaussian(N, K, D, seed)
                : kind == 1 ? tied(N, K, D, seed)
                            : nearly_tied(N, K, D, 1, seed);
    for (float& x : p.latents) x = std::ldexp(x, exponent);
    for (float& c : p.codebook) c = std::ldexp(c, exponent);
    const std::vector<int32_t> expected = nearest_codes(p);
    for (const LookupVariant* variant : lookup_variants(Device::cpu))
      RC_ASSERT(run_variant(*variant, p) == expected);
  });
  REQUIRE(ok);
}

TEST_CASE("lookup: wrong operands are rejected", "[unit][bad-input]") {
  std::vector<float> latents(12), codebook(8);
  std::vector<int32_t> codes(3);
  int32_t first_bad_row = 0;
  std::vector<std::byte> scratch(size_t(lookup_scratch_bytes(Device::cpu, 3, 2, 4)));
  const LookupVariant never = {.name = "never",
                               .device = Device::cpu,
                               .idea = "",
                               .exact = true,
                               .supports = [](int64_t, int64_t, int64_t) { return false; },
                               .scratch_bytes = [](int64_t, int64_t, int64_t) { return int64_t(0); },
                               .run = nullptr};
  const LookupOp good = {.codes = {codes.data(), {3}},
                         .first_bad_row = {&first_bad_row, {1}},
                         .latents = {latents.data(), {3, 4}},
                         .codebook = {codebook.data(), {2, 4}},
                         .scratch = {scratch.data(), {int64_t(scratch.size())}}};
  run(good, Stream{});
  CHECK(first_bad_row == -1);
  const auto rejected = [&](auto change) {
    LookupOp op = good;
    change(op);
    CHECK_THROWS_AS(run(op, Stream{}), Error);
  };
  rejected([&](LookupOp& op) { op.latents = {latents.data(), {4, 3}}; });
  rejected([&](LookupOp& op) { op.latents = {latents.data(), {12}}; });
  rejected([&](LookupOp& op) { op.latents = {latents.data(), {0, 4}}; });
  rejected([&](LookupOp& op) { op.codebook = {codebook.data(), {0, 4}}; });
  rejected([&](LookupOp& op) { op.codebook = {codebook.data(), {int64_t(1) << 31, 4}}; });
  rejected([&](LookupOp& op) { op.latents = {latents.data(), {int64_t(1) << 31, 4}}; });
  rejected([&](LookupOp& op) { op.codes = {codes.data(), {2}}; });
  rejected([&](LookupOp& op) { op.first_bad_row = {}; });
  rejected([&](LookupOp& op) { op.scratch = {scratch.data(), {int64_t(scratch.size()) - 1}}; });
  rejected([&](LookupOp& op) { op.scratch = {}; });
  rejected([&](LookupOp& op) { op.variant = &never; });
}

TEST_CASE("lookup: variants refuse codebooks by rule", "[unit]") {
  const auto supports = [](const char* name, int64_t K) {
    return find_lookup_variant(Device::cpu, name).supports(1, K, 8);
  };
  CHECK(supports("onednn", 32768));
  CHECK(!supports("onednn", 32769));
  CHECK(supports("scalar", 1 << 17));
  CHECK(!supports("scalar", (1 << 17) + 1));
}

TEST_CASE("lookup: a product in several blocks of rows", "[unit]") {
  Problem p = gaussian(300, 5000, 3, 17);  // 209 rows at a time
  p.latents[250 * 3] = kNaN;
  std::vector<int32_t> expected = nearest_codes(p);
  expected[250] = 0;
  require_codes(p, expected, 250);
}

TEST_CASE("lookup: variants are found by name", "[unit][bad-input]") {
  for (const LookupVariant* variant : lookup_variants(Device::cpu))
    CHECK(&find_lookup_variant(Device::cpu, variant->name) == variant);
  CHECK(lookup_variants(Device::cpu).back()->supports(1, 1, 1));
  CHECK(lookup_variants(Device::cpu).back()->supports(1'000'000'000, 1'000'000'000, 1'000'000));
  try {
    find_lookup_variant(Device::cpu, "fusd");
    FAIL("an unknown variant was found");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(error.hint().find("'fused'") != std::string::npos);
  }
}

TEST_CASE("names: the nearest one is suggested", "[unit]") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("abc", "acb") == 2);
  const std::vector<std::string_view> names = {"decay", "dim", "kind"};
  CHECK(nearest_name("decya", names) == "decay");
  CHECK(nearest_name("dims", names) == "dim");
  CHECK(nearest_name("kind", names) == "kind");
  CHECK(nearest_name("x", {}).empty());
}

}  // namespace vqlab
