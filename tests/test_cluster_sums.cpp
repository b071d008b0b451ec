// The cluster sums and the fused forward pass, against their definition written out; the fused backward pass.
#include <algorithm>
#include <array>
#include <cmath>

#include "codebook_problems.hpp"
#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/ema_update.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "kernels/core/parallel.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {
namespace {

struct Result {
  std::vector<int32_t> counts;
  std::vector<float> sums, quantized, distance;
};

// The order of the header, one element after the other.
Result by_definition(const Problem& p) {
  Result result{std::vector<int32_t>(size_t(p.K)), std::vector<float>(size_t(p.K * p.D)), {}, {}};
  const int64_t tiles = (p.D + kSquaresTile - 1) / kSquaresTile;
  std::vector<float> squares(size_t(p.K * tiles));
  for (int64_t k = 0; k < p.K; ++k) {
    std::vector<int64_t> rows;
    for (int64_t n = 0; n < p.N; ++n)
      if (p.codes[size_t(n)] == k) rows.push_back(n);
    result.counts[size_t(k)] = int32_t(rows.size());
    for (size_t begin = 0; begin < rows.size(); begin += size_t(kClusterChunk)) {
      const size_t end = std::min(rows.size(), begin + size_t(kClusterChunk));
      for (int64_t tile = 0; tile < tiles; ++tile) {
        std::vector<float> of_dimensions(size_t(kSquaresTile), 0.0f);
        for (int64_t d = tile * kSquaresTile; d < std::min(p.D, (tile + 1) * kSquaresTile); ++d) {
          float sum = 0.0f, square = 0.0f;
          for (size_t i = begin; i < end; ++i) {
            const float latent = p.latents[size_t(rows[i] * p.D + d)];
            const float difference = latent - p.codebook[size_t(k * p.D + d)];
            sum += latent, square += difference * difference;
          }
          result.sums[size_t(k * p.D + d)] += sum;
          of_dimensions[size_t(d - tile * kSquaresTile)] = square;
        }
        while (of_dimensions.size() > 1) {
          for (size_t i = 0; i < of_dimensions.size() / 2; ++i)
            of_dimensions[i] = of_dimensions[2 * i] + of_dimensions[2 * i + 1];
          of_dimensions.resize(of_dimensions.size() / 2);
        }
        squares[size_t(k * tiles + tile)] += of_dimensions[0];
      }
    }
  }
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t d = 0; d < p.D; ++d)
      result.quantized.push_back(p.codebook[size_t(p.codes[size_t(n)] * p.D + d)]);
  result.distance = {finish_sum(squares.data(), int64_t(squares.size())) / float(p.N * p.D)};
  return result;
}

Result run_variant(const ClusterSumsVariant& variant, const Problem& p, bool quantizing) {
  Guarded<int32_t> counts(p.K);
  Guarded<float> sums(p.K * p.D, 1), quantized(p.N * p.D, 1), distance(1);
  Guarded<std::byte> scratch(cluster_sums_scratch_bytes(Device::cpu, p.N, p.K, p.D));
  ClusterSumsOp op{.counts = counts.view({p.K}),
                   .sums = sums.view({p.K, p.D}),
                   .latents = p.latents_view(),
                   .codes = p.codes_view(),
                   .scratch = scratch.view({scratch.size()}),
                   .variant = &variant};
  if (quantizing) {
    op.quantized = quantized.view({p.N, p.D});
    op.distance = distance.view({1});
    op.codebook = p.codebook_view();
  }
  run(op, Stream{});
  counts.check_guards(), sums.check_guards(), scratch.check_guards();
  quantized.check_guards(), distance.check_guards();
  const auto copy = [](auto& from) {
    return std::vector<std::remove_cvref_t<decltype(*from.data())>>(from.data(), from.data() + from.size());
  };
  if (!quantizing) return {copy(counts), copy(sums), {}, {}};
  return {copy(counts), copy(sums), copy(quantized), copy(distance)};
}

void require_definition(const Problem& p) {
  const Result expected = by_definition(p);
  for (const ClusterSumsVariant* variant : cluster_sums_variants(Device::cpu))
    for (const bool quantizing : {false, true})
      for (const int workers : {1, 2, 3}) {
        set_worker_count(workers);
        INFO(variant->name << ", N " << p.N << ", K " << p.K << ", D " << p.D << ", workers " << workers);
        const Result found = run_variant(*variant, p, quantizing);
        REQUIRE(found.counts == expected.counts);
        REQUIRE(found.sums == expected.sums);
        if (!quantizing) continue;
        REQUIRE(found.quantized == expected.quantized);
        REQUIRE(found.distance == expected.distance);
      }
  set_worker_count(0);
}

}  // namespace

TEST_CASE("cluster sums: the stated order bit for bit, and quantized latents beside them", "[unit]") {
  for (const Problem& p : problems()) require_definition(p);
}

TEST_CASE("cluster sums: skewed codes, empty codes, one code", "[unit]") {
  for (const auto& [N, K, D] :
       {std::array<int64_t, 3>{3000, 40, 16}, {1000, 1, 33}, {700, 300, 32}, {257, 5, 100}})
    for (const CodesOfRows& of : kCodesOfRows) {
      INFO(of.name);
      Problem p(N, K, D);
      p.codes = codes_of_rows(of, N, K, 8);
      require_definition(p);
    }
}

TEST_CASE("cluster sums: the distance is that of straight through but for rounding", "[unit]") {
  for (const Problem& p : problems()) {
    const Result fused = run_variant(*cluster_sums_variants(Device::cpu).front(), p, true);
    std::vector<float> quantized(fused.quantized.size()), block_sums(size_t(sum_blocks(p.N * p.D)));
    float distance = kNan;
    run(StraightThroughOp{.quantized = {quantized.data(), {p.N, p.D}},
                          .distance = {&distance, {1}},
                          .latents = p.latents_view(),
                          .codebook = p.codebook_view(),
                          .codes = p.codes_view(),
                          .block_sums = {block_sums.data(), {int64_t(block_sums.size())}}},
        Stream{});
    CHECK(fused.quantized == quantized);
    // Terms with 3 roundings, all positive. Here at most 16 + 8 + 9 additions on a term's way; there 127 of a
    // chunk, 5 of a tile, 33 of the chunks of 4097 rows, 2 + 8 of lanes; a division each.
    CHECK(std::abs(double(fused.distance[0]) - double(distance)) <= (40 + 180) * kEps * double(distance));
  }
}

TEST_CASE("cluster sums: NaN stays in the sums of its own code", "[unit]") {
  Problem p(300, 7, 40);
  const Result clean = by_definition(p);
  p.latents[size_t(123 * p.D + 35)] = kNan;
  const int64_t at = p.codes[123] * p.D + 35;
  const Result found = run_variant(*cluster_sums_variants(Device::cpu).front(), p, true);
  for (int64_t i = 0; i < p.K * p.D; ++i)
    if (i == at)
      CHECK(std::isnan(found.sums[size_t(i)]));
    else
      CHECK(found.sums[size_t(i)] == clean.sums[size_t(i)]);
  CHECK(std::isnan(found.distance[0]));
  CHECK(found.quantized == clean.quantized);
  CHECK(found.counts == clean.counts);
}

TEST_CASE("cluster sums: operands that do not fit are refused", "[unit][bad-input]") {
  const Problem p(4, 2, 3);
  std::vector<int32_t> counts(2);
  std::vector<float> sums(6), quantized(12), one(1);
  std::vector<std::byte> scratch(size_t(cluster_sums_scratch_bytes(Device::cpu, 4, 2, 3)));
  const ClusterSumsOp good{.counts = {counts.data(), {2}},
                           .sums = {sums.data(), {2, 3}},
                           .latents = p.latents_view(),
                           .codes = p.codes_view(),
                           .scratch = {scratch.data(), {int64_t(scratch.size())}},
                           .quantized = {quantized.data(), {4, 3}},
                           .distance = {one.data(), {1}},
                           .codebook = p.codebook_view()};
  run(good, Stream{});
  const auto refused = [&](auto spoil) {
    ClusterSumsOp op = good;
    spoil(op);
    CHECK_THROWS_AS(run(op, Stream{}), Error);
  };
  refused([](ClusterSumsOp& op) { op.quantized = {}; });
  refused([](ClusterSumsOp& op) { op.distance = {}; });
  refused([](ClusterSumsOp& op) { op.codebook = {}; });
  refused([](ClusterSumsOp& op) { op.quantized.dim[0] = 3; });
  refused([](ClusterSumsOp& op) { op.distance.dim[0] = 2; });
  refused([](ClusterSumsOp& op) { op.codebook.dim[1] = 2; });
  refused([](ClusterSumsOp& op) { op.sums.dim[1] = 2; });
  refused([](ClusterSumsOp& op) { op.codes.dim[0] = 3; });
  refused([](ClusterSumsOp& op) { op.scratch.dim[0] -= 1; });
}

TEST_CASE("straight through: both gradients in one call are the derivatives of the losses", "[unit]") {
  const Problem p(50, 8, 16);
  const double commitment = 0.25, codebook_weight = 0.7, elements = double(p.N * p.D);
  const Result sums = run_variant(*cluster_sums_variants(Device::cpu).front(), p, false);
  const std::vector<float> d_quantized = normal_floats(p.N * p.D, 9);
  std::vector<float> d_latents(d_quantized.size()), d_codebook(p.codebook.size(), kNan), alone(d_codebook);
  const StraightThroughBackwardOp op{.d_latents = {d_latents.data(), {p.N, p.D}},
                                     .d_quantized = {d_quantized.data(), {p.N, p.D}},
                                     .latents = p.latents_view(),
                                     .codebook = p.codebook_view(),
                                     .codes = p.codes_view(),
                                     .commitment_scale = float(2 * commitment / elements),
                                     .d_codebook = {d_codebook.data(), {p.K, p.D}},
                                     .counts = {sums.counts.data(), {p.K}},
                                     .sums = {sums.sums.data(), {p.K, p.D}},
                                     .codebook_scale = float(2 * codebook_weight / elements)};
  run(op, Stream{});
  CodebookGradientOp separate = op.codebook_gradient();
  separate.d_codebook = {alone.data(), {p.K, p.D}};
  run(separate, Stream{});
  CHECK(d_codebook == alone);

  const std::vector<float> by_latent = normal_floats(p.N * p.D, 10), by_code = normal_floats(p.K * p.D, 11);
  // Along both directions at once: commitment term and what passes straight through, with the codes held; the
  // codebook term, with the latents held.
  const auto loss = [&](double h) {
    double total = 0.0;
    for (size_t i = 0; i < by_latent.size(); ++i) {
      const size_t at = size_t(p.codes[i / size_t(p.D)]) * size_t(p.D) + i % size_t(p.D);
      const double z = double(p.latents[i]), e = double(p.codebook[at]);
      const double moved = z + h * double(by_latent[i]), code = e + h * double(by_code[at]);
      total +=
          (commitment * (moved - e) * (moved - e) + codebook_weight * (z - code) * (z - code)) / elements +
          double(d_quantized[i]) * moved;
    }
    return total;
  };
  double analytic = 0.0, magnitude = 0.0;
  const auto add = [&](const std::vector<float>& gradient, const std::vector<float>& direction) {
    for (size_t i = 0; i < gradient.size(); ++i) {
      analytic += double(gradient[i]) * double(direction[i]);
      magnitude += std::abs(double(gradient[i]) * double(direction[i]));
    }
  };
  add(d_latents, by_latent), add(d_codebook, by_code);
  // The loss is quadratic, so a central difference is exact but for rounding in double. A gradient has 4
  // roundings; that of a code about 10 more, in which n_k e_k and S_k cancel.
  CHECK(std::abs(analytic - (loss(1e-3) - loss(-1e-3)) / 2e-3) <= 4 * kEps * magnitude + 1e-6);
}

TEST_CASE("straight through: a codebook gradient without counts or sums is refused", "[unit][bad-input]") {
  const Problem p(4, 2, 3);
  std::vector<float> d(12), d_codebook(6), sums(6);
  std::vector<int32_t> counts(2);
  const StraightThroughBackwardOp good{.d_latents = {d.data(), {4, 3}},
                                       .d_quantized = {d.data(), {4, 3}},
                                       .latents = p.latents_view(),
                                       .codebook = p.codebook_view(),
                                       .codes = p.codes_view(),
                                       .commitment_scale = 0.1f,
                                       .d_codebook = {d_codebook.data(), {2, 3}},
                                       .counts = {counts.data(), {2}},
                                       .sums = {sums.data(), {2, 3}},
                                       .codebook_scale = 0.1f};
  run(good, Stream{});
  const auto refused = [&](auto spoil) {
    StraightThroughBackwardOp op = good;
    spoil(op);
    CHECK_THROWS_AS(run(op, Stream{}), Error);
  };
  refused([](StraightThroughBackwardOp& op) { op.counts = {}; });
  refused([](StraightThroughBackwardOp& op) { op.sums = {}; });
  refused([](StraightThroughBackwardOp& op) { op.d_codebook = {}; });
  refused([](StraightThroughBackwardOp& op) { op.d_codebook.dim[0] = 1; });
  refused([](StraightThroughBackwardOp& op) { op.counts.dim[0] = 1; });
}

}  // namespace vqlab::testing
