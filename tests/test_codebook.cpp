// The codebook ops beside lookup and cluster sums: straight-through, averages, restart, k-means, health.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "codebook_problems.hpp"
#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/ema_update.hpp"
#include "kernels/codebook/health.hpp"
#include "kernels/codebook/kmeans.hpp"
#include "kernels/codebook/restart.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab::testing {

TEST_CASE("straight through: copies the code exactly and measures the mean squared distance", "[unit]") {
  for (const Problem& p : problems()) {
    Guarded<float> quantized(p.N * p.D, 1), distance(1), sums(sum_blocks(p.N * p.D));
    run(StraightThroughOp{.quantized = quantized.view({p.N, p.D}),
                          .distance = distance.view({1}),
                          .latents = p.latents_view(),
                          .codebook = p.codebook_view(),
                          .codes = p.codes_view(),
                          .block_sums = sums.view({sums.size()})},
        Stream{});
    double expected = 0.0;
    for (int64_t i = 0; i < p.N * p.D; ++i) {
      const float code = p.codebook[size_t(p.codes[size_t(i / p.D)] * p.D + i % p.D)];
      CHECK(quantized.data()[i] == code);
      expected += std::pow(double(p.latents[size_t(i)]) - double(code), 2);
    }
    expected /= double(p.N * p.D);
    // Each term has 3 roundings, a block sum at most 16 + 8 more, the blocks at most 9; all terms are
    // positive.
    require_close(distance.view({1}), {expected}, 40 * kEps * expected, "distance");
    for (const Guarded<float>* g : {&quantized, &distance, &sums}) g->check_guards();
  }
}

TEST_CASE("straight through: the commitment gradient is the derivative of the distance", "[unit]") {
  const Problem p(50, 8, 16);
  const double weight = 0.25;
  std::vector<float> d_quantized = normal_floats(p.N * p.D, 9), d_latents(d_quantized.size());
  run(StraightThroughBackwardOp{.d_latents = {d_latents.data(), {p.N, p.D}},
                                .d_quantized = {d_quantized.data(), {p.N, p.D}},
                                .latents = p.latents_view(),
                                .codebook = p.codebook_view(),
                                .codes = p.codes_view(),
                                .commitment_scale = float(2 * weight / double(p.N * p.D))},
      Stream{});
  const std::vector<float> direction = normal_floats(p.N * p.D, 10);
  const auto loss = [&](double h) {  // commitment term plus <d_quantized, z>: what passes straight through
    double total = 0.0;
    for (size_t i = 0; i < direction.size(); ++i) {
      const double z = double(p.latents[i]) + h * double(direction[i]);
      const double e = double(p.codebook[size_t(p.codes[i / size_t(p.D)]) * size_t(p.D) + i % size_t(p.D)]);
      total += weight * (z - e) * (z - e) / double(p.N * p.D) + double(d_quantized[i]) * z;
    }
    return total;
  };
  double analytic = 0.0, magnitude = 0.0;
  for (size_t i = 0; i < direction.size(); ++i) {
    analytic += double(d_latents[i]) * double(direction[i]);
    magnitude += std::abs(double(d_latents[i]) * double(direction[i]));
  }
  // The loss is quadratic, so a central difference is exact but for rounding in double; the gradient has 4
  // roundings.
  const double numeric = (loss(1e-3) - loss(-1e-3)) / 2e-3;
  CHECK(std::abs(analytic - numeric) <= 4 * kEps * magnitude + 1e-9);
}

TEST_CASE("straight through: operands that disagree are refused", "[unit]") {
  const Problem p(4, 2, 3);
  std::vector<float> out(12), one(1), sums(1);
  StraightThroughOp op{.quantized = {out.data(), {4, 3}},
                       .distance = {one.data(), {1}},
                       .latents = p.latents_view(),
                       .codebook = p.codebook_view(),
                       .codes = p.codes_view(),
                       .block_sums = {sums.data(), {1}}};
  op.check();
  op.quantized = {out.data(), {3, 4}};
  CHECK_THROWS_AS(op.check(), Error);
  op.quantized = {out.data(), {4, 3}};
  op.codebook = {p.codebook.data(), {3, 2}};
  CHECK_THROWS_AS(op.check(), Error);
  op.codebook = p.codebook_view();
  op.block_sums = {};
  CHECK_THROWS_AS(op.check(), Error);
}

namespace {

// State of an averaged codebook of K codes of D elements.
struct Averages {
  std::vector<float> codebook, size, sum;
  std::vector<int32_t> counts;
  std::vector<float> sums;
  int32_t poisoned = 0;
  int64_t K, D;
  Averages(int64_t k, int64_t d)
      : codebook(normal_floats(k * d, 5)),
        size(size_t(k), 1.0f),
        sum(codebook),
        counts(size_t(k)),
        sums(size_t(k * d)),
        K(k),
        D(d) {}
  void update(float decay) {
    run(EmaUpdateOp{.codebook = {codebook.data(), {K, D}},
                    .cluster_size = {size.data(), {K}},
                    .cluster_sum = {sum.data(), {K, D}},
                    .counts = {counts.data(), {K}},
                    .sums = {sums.data(), {K, D}},
                    .poisoned = {&poisoned, {1}},
                    .decay = decay},
        Stream{});
  }
};

}  // namespace

TEST_CASE("ema update: follows the closed form", "[unit]") {
  Averages a(3, 2);
  const std::vector<float> start = a.codebook;
  a.counts = {4, 0, 1};
  a.sums = {2.0f, -4.0f, 0.0f, 0.0f, 7.0f, 1.0f};
  for (int step = 0; step < 100; ++step) a.update(0.9f);
  const double left = std::pow(0.9, 100);  // of the initial state
  for (size_t k = 0; k < 3; ++k) {
    const double size = left + (1 - left) * a.counts[k];
    // 100 steps of two roundings, each shrinking by 0.9: the errors add up to less than 2 / (1 - 0.9) of one.
    CHECK(std::abs(double(a.size[k]) - size) <= 30 * kEps * std::max(1.0, size));
    for (size_t d = 0; d < 2; ++d) {
      const double sum = left * double(start[2 * k + d]) + (1 - left) * double(a.sums[2 * k + d]);
      CHECK(std::abs(double(a.codebook[2 * k + d]) - sum / size) <=
            60 * kEps * std::max(1.0, std::abs(sum) / size));
    }
  }
}

TEST_CASE("ema update: an unused code survives any number of steps", "[unit]") {
  Averages a(2, 4);
  const std::vector<float> start = a.codebook;
  a.counts = {0, 10};
  for (int d = 4; d < 8; ++d) a.sums[size_t(d)] = 10.0f;
  for (int step = 0; step < 5000; ++step) a.update(0.99f);
  for (size_t d = 0; d < 4; ++d) {
    // Until its count falls below the minimum, about 690 steps, each average takes one rounding a step.
    CHECK(std::abs(double(a.codebook[d]) - double(start[d])) <= 1400 * kEps * std::abs(double(start[d])));
    CHECK(std::abs(double(a.codebook[4 + d]) - 1.0) <= 400 * kEps);
  }
}

TEST_CASE("ema update: a poisoned step changes nothing", "[unit]") {
  Averages a(4, 3), before = a;
  a.counts = {1, 2, 3, 4};
  a.poisoned = 1;
  a.update(0.5f);
  CHECK(a.codebook == before.codebook);
  CHECK(a.size == before.size);
  CHECK(a.sum == before.sum);
}

TEST_CASE("codebook gradient: is the derivative of the codebook loss", "[unit]") {
  const Problem p(40, 5, 6);
  std::vector<int32_t> counts(5);
  std::vector<float> sums(30), gradient(30);
  std::vector<std::byte> scratch(size_t(cluster_sums_scratch_bytes(Device::cpu, 40, 5, 6)));
  run(ClusterSumsOp{.counts = {counts.data(), {5}},
                    .sums = {sums.data(), {5, 6}},
                    .latents = p.latents_view(),
                    .codes = p.codes_view(),
                    .scratch = {scratch.data(), {int64_t(scratch.size())}}},
      Stream{});
  run(CodebookGradientOp{.d_codebook = {gradient.data(), {5, 6}},
                         .codebook = p.codebook_view(),
                         .counts = {counts.data(), {5}},
                         .sums = {sums.data(), {5, 6}},
                         .scale = float(2.0 / (40 * 6))},
      Stream{});
  const std::vector<float> direction = normal_floats(30, 3);
  const auto loss = [&](double h) {
    double total = 0.0;
    for (size_t n = 0; n < 40; ++n)
      for (size_t d = 0; d < 6; ++d) {
        const size_t i = size_t(p.codes[n]) * 6 + d;
        total +=
            std::pow(double(p.latents[n * 6 + d]) - double(p.codebook[i]) - h * double(direction[i]), 2) /
            240.0;
      }
    return total;
  };
  double analytic = 0.0;
  for (size_t i = 0; i < 30; ++i) analytic += double(gradient[i]) * double(direction[i]);
  // Quadratic loss: the central difference is exact. A gradient element rounds about 10 times, n_k e_k and
  // S_k cancel.
  CHECK(std::abs(analytic - (loss(1e-3) - loss(-1e-3)) / 2e-3) <= 1e-6);
}

TEST_CASE("average counts: follows the closed form and a poisoned step changes nothing", "[unit]") {
  std::vector<float> size = {1.0f, 2.0f};
  const std::vector<int32_t> counts = {3, 0};
  int32_t poisoned = 0;
  const AverageCountsOp op{.cluster_size = {size.data(), {2}},
                           .counts = {counts.data(), {2}},
                           .poisoned = {&poisoned, {1}},
                           .decay = 0.5f};
  run(op, Stream{});
  CHECK(size == std::vector<float>{2.0f, 1.0f});
  poisoned = 1;
  run(op, Stream{});
  CHECK(size == std::vector<float>{2.0f, 1.0f});
}

namespace {

struct Restart {
  int64_t N, K, D;
  std::vector<float> codebook, size, sum, m1, m2, latents;
  int32_t replaced = -1, poisoned = 0;
  StepState state{.step = 4};
  Restart(int64_t n, int64_t k, int64_t d)
      : N(n),
        K(k),
        D(d),
        codebook(normal_floats(k * d, 1)),
        size(size_t(k), 1.0f),
        sum(codebook),
        m1(codebook),
        m2(codebook),
        latents(normal_floats(n * d, 2)) {}
  void run_op(float threshold = 0.1f, int64_t every = 5) {
    run(RestartOp{.codebook = {codebook.data(), {K, D}},
                  .cluster_size = {size.data(), {K}},
                  .cluster_sum = {sum.data(), {K, D}},
                  .moment1 = {m1.data(), {K, D}},
                  .moment2 = {m2.data(), {K, D}},
                  .replaced = {&replaced, {1}},
                  .latents = {latents.data(), {N, D}},
                  .state = {&state, {1}},
                  .poisoned = {&poisoned, {1}},
                  .threshold = threshold,
                  .every = every,
                  .seed = 7},
        Stream{});
  }
  // The latent that code k equals, or -1.
  int64_t latent_of(int64_t k) const {
    for (int64_t n = 0; n < N; ++n)
      if (std::equal(codebook.begin() + k * D, codebook.begin() + (k + 1) * D, latents.begin() + n * D))
        return n;
    return -1;
  }
};

}  // namespace

TEST_CASE("restart: dead codes take latents without replacement", "[unit]") {
  Restart r(64, 80, 3);
  for (size_t k = 0; k < 60; ++k) r.size[k] = 0.0f;
  r.size[70] = 60.0f;
  const float mean = (19.0f + 60.0f) / 80.0f;
  r.run_op();
  REQUIRE(r.replaced == 60);
  std::set<int64_t> rows;
  for (int64_t k = 0; k < 60; ++k) {
    const int64_t row = r.latent_of(k);
    REQUIRE(row >= 0);
    CHECK(rows.insert(row).second);
    CHECK(r.size[size_t(k)] == mean);
    for (int64_t d = 0; d < 3; ++d) {
      CHECK(r.sum[size_t(k * 3 + d)] == mean * r.codebook[size_t(k * 3 + d)]);
      CHECK(r.m1[size_t(k * 3 + d)] == 0.0f);
      CHECK(r.m2[size_t(k * 3 + d)] == 0.0f);
    }
  }
  for (int64_t k = 60; k < 80; ++k) CHECK(r.latent_of(k) == -1);
}

TEST_CASE("restart: the rule is relative to the mean count", "[unit]") {
  Restart r(64, 4, 2);
  r.size = {100.0f, 100.0f, 9.0f, 190.0f};  // mean 99.75, a tenth of it 9.975
  r.run_op();
  CHECK(r.replaced == 1);
  CHECK(r.latent_of(2) >= 0);
}

TEST_CASE("restart: with more dead codes than latents the rest waits", "[unit]") {
  Restart r(3, 10, 2);
  std::fill(r.size.begin(), r.size.end() - 1, 0.0f);
  r.run_op();
  CHECK(r.replaced == 3);
  for (int64_t k = 0; k < 3; ++k) CHECK(r.latent_of(k) >= 0);
  for (int64_t k = 3; k < 10; ++k) CHECK(r.latent_of(k) == -1);
}

TEST_CASE("restart: off or poisoned or between its steps it changes nothing", "[unit]") {
  Restart r(8, 4, 2);
  r.size = {0.0f, 0.0f, 0.0f, 1.0f};
  const std::vector<float> before = r.codebook;
  SECTION("off") { r.run_op(0.0f); }
  SECTION("between") { r.run_op(0.1f, 4); }
  SECTION("poisoned") {
    r.poisoned = 1;
    r.run_op();
  }
  CHECK(r.replaced == 0);
  CHECK(r.codebook == before);
}

TEST_CASE("restart: draws other latents in another step", "[unit]") {
  Restart a(1000, 2, 2), b(1000, 2, 2);
  a.size = b.size = {0.0f, 1.0f};
  b.state.step = 9;
  a.run_op(), b.run_op();
  CHECK(a.latent_of(0) != b.latent_of(0));
}

namespace {

struct KMeans {
  std::vector<float> latents, codebook, size, sum;
  int32_t bad_row = 0;
  KMeans(std::vector<float> z, int64_t K, int64_t D, float scale = 1.0f)
      : latents(std::move(z)), codebook(size_t(K * D)), size(size_t(K)), sum(size_t(K * D)) {
    const int64_t N = int64_t(latents.size()) / D;
    Guarded<std::byte> scratch(kmeans_scratch_bytes(Device::cpu, N, K, D), 1);
    run(KMeansOp{.codebook = {codebook.data(), {K, D}},
                 .cluster_size = {size.data(), {K}},
                 .cluster_sum = {sum.data(), {K, D}},
                 .first_bad_row = {&bad_row, {1}},
                 .latents = {latents.data(), {N, D}},
                 .key = {.seed = 3, .step = 0, .use = RandomUse::kmeans, .tensor = 0},
                 .rounds = 8,
                 .count_scale = scale,
                 .scratch = scratch.view({scratch.size()})},
        Stream{});
    scratch.check_guards();
  }
};

}  // namespace

TEST_CASE("kmeans: finds the means of separated clusters with their counts", "[unit]") {
  // Two clusters a thousand standard deviations apart: whatever the start, Lloyd's rounds end at their means.
  std::vector<float> z = normal_floats(200, 1);
  for (size_t i = 0; i < 120; ++i) z[i] += 1000.0f;
  double mean_a = 0.0, mean_b = 0.0;
  for (size_t i = 0; i < 200; ++i) (i < 120 ? mean_a : mean_b) += double(z[i]);
  const KMeans k(z, 2, 1, 0.5f);
  const size_t a = k.codebook[0] > k.codebook[1] ? 0 : 1;
  CHECK(k.bad_row == -1);
  // Sums of up to 120 terms of 1000: 120 roundings at most.
  CHECK(std::abs(double(k.codebook[a]) - mean_a / 120) <= 121 * kEps * 1000);
  CHECK(std::abs(double(k.codebook[1 - a]) - mean_b / 80) <= 81 * kEps * 4);
  CHECK(k.size[a] == 60.0f);
  CHECK(k.size[1 - a] == 40.0f);
  CHECK(k.sum[a] == 60.0f * k.codebook[a]);
}

TEST_CASE("kmeans: fewer latents than codes leaves duplicates that no latent takes", "[unit]") {
  const KMeans k({1.0f, 2.0f, 3.0f}, 5, 1);
  std::vector<float> codes = k.codebook;
  std::sort(codes.begin(), codes.end());
  CHECK(codes.front() == 1.0f);
  CHECK(codes.back() == 3.0f);
  CHECK(std::count(k.size.begin(), k.size.end(), 1.0f) == 3);
  CHECK(std::count(k.size.begin(), k.size.end(), 0.0f) == 2);
}

TEST_CASE("health: usage and perplexity of known distributions", "[unit]") {
  const std::vector<int64_t> even(8, 5), one = {0, 7, 0}, half = {3, 3, 0, 0}, none = {0, 0};
  CHECK(std::abs(usage_of(even.data(), 8).perplexity - 8.0) <= 1e-12);
  CHECK(usage_of(one.data(), 3).used == 1);
  CHECK(std::abs(usage_of(one.data(), 3).perplexity - 1.0) <= 1e-12);
  CHECK(std::abs(usage_of(half.data(), 4).perplexity - 2.0) <= 1e-12);
  CHECK(usage_of(none.data(), 2).used == 0);
}

TEST_CASE("health: counts dead codes and ages and drift", "[unit]") {
  std::vector<float> codebook = {3.0f, 4.0f, 0.0f, 0.0f}, previous = {3.0f, 4.0f, 0.0f, 1.0f},
                     size = {10.0f, 0.1f}, scratch(4);
  std::vector<int32_t> age = {5, 7}, counts = {12, 0};
  CodebookHealth health{};
  int32_t poisoned = 0;
  const CodebookHealthOp op{.health = {&health, {1}},
                            .age = {age.data(), {2}},
                            .previous = {previous.data(), {2, 2}},
                            .codebook = {codebook.data(), {2, 2}},
                            .counts = {counts.data(), {2}},
                            .cluster_size = {size.data(), {2}},
                            .poisoned = {&poisoned, {1}},
                            .threshold = 0.1f,
                            .scratch = {scratch.data(), {4}}};
  run(op, Stream{});
  CHECK(health.used == 1);
  CHECK(health.dead == 1);
  CHECK(health.perplexity == 1.0f);
  CHECK(health.mean_age == 4.0f);
  CHECK(health.mean_norm == 2.5f);
  CHECK(health.drift == 1.0f / 5.0f);
  CHECK(age == std::vector<int32_t>{0, 8});
  run(op, Stream{});
  CHECK(health.drift == 0.0f);
  poisoned = 1;
  run(op, Stream{});
  CHECK(age == std::vector<int32_t>{0, 9});
}

}  // namespace vqlab::testing
