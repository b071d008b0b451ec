// Finite scalar quantisation, unit rows and the rotation trick against slow definitions in double.
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/codebook/fsq.hpp"
#include "kernels/codebook/rotation.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "kernels/codebook/unit_rows.hpp"
#include "kernels/core/parallel.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon() / 2;  // relative error of one float operation
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Levels = std::vector<int64_t>;
const std::vector<Levels>& grids() {
  static const std::vector<Levels> list = {
      {2}, {3}, {5}, {8}, {8, 6, 5}, {7, 5, 5, 5, 5}, {2, 3, 2, 3}, {1000, 4}, {999, 2}, Levels(16, 2)};
  return list;
}

std::vector<float> scaled(std::vector<float> values, float scale) {
  for (float& x : values) x *= scale;
  return values;
}

struct FsqResult {
  std::vector<float> quantized;
  std::vector<int32_t> codes;
  int32_t first_bad_row;
};

FsqResult quantize(const FsqGrid& grid, const std::vector<float>& latents) {
  const int64_t D = grid.D, N = int64_t(latents.size()) / D;
  Guarded<float> quantized(N * D, 1);
  Guarded<int32_t> codes(N, 1), first_bad_row(1), counts(grid.K);
  run(FsqOp{.quantized = quantized.view({N, D}),
            .codes = codes.view({N}),
            .first_bad_row = first_bad_row.view({1}),
            .latents = {latents.data(), {N, D}},
            .grid = grid,
            .counts = counts.view({grid.K})},
      Stream{});
  quantized.check_guards(), codes.check_guards(), first_bad_row.check_guards(), counts.check_guards();
  std::vector<int32_t> expected(size_t(grid.K));
  for (int64_t n = 0; n < N; ++n) ++expected[size_t(codes.data()[n])];
  CHECK(std::equal(expected.begin(), expected.end(), counts.data()));
  return {
      {quantized.data(), quantized.data() + N * D}, {codes.data(), codes.data() + N}, *first_bad_row.data()};
}

std::vector<float> decode(const FsqGrid& grid, const std::vector<int32_t>& codes) {
  const int64_t D = grid.D, N = int64_t(codes.size());
  Guarded<float> quantized(N * D, 1);
  run(FsqDecodeOp{.quantized = quantized.view({N, D}), .codes = {codes.data(), {N}}, .grid = grid}, Stream{});
  quantized.check_guards();
  return {quantized.data(), quantized.data() + N * D};
}

// The bounded latent before rounding, from L alone.
double bounded64(int64_t L, double z) {
  const double half = double(L - 1) * 1.001 / 2, offset = L % 2 == 0 ? 0.5 : 0.0;
  return half * std::tanh(z + std::atanh(offset / half)) - offset;
}

}  // namespace

TEST_CASE("fsq: codes and values follow the definition", "[unit]") {
  for (const Levels& levels : grids()) {
    const FsqGrid grid = fsq_grid(levels);
    const int64_t D = grid.D, N = 600;
    const std::vector<float> latents = scaled(normal_floats(N * D, 3), 1.5f);
    for (const int workers : {1, 3}) {
      set_worker_count(workers);
      const FsqResult r = quantize(grid, latents);
      CHECK(r.first_bad_row == -1);
      for (int64_t n = 0; n < N; ++n) {
        int64_t code = 0, base = 1;
        for (int64_t d = 0; d < D; ++d) {
          const int64_t L = levels[size_t(d)], w = L / 2;
          const double b = bounded64(L, double(latents[size_t(n * D + d)]));
          const float value = r.quantized[size_t(n * D + d)];
          const int64_t digit = std::llround(double(value) * double(w)) + w;
          // h, tanh, product and difference each round once, z + shift moves tanh by at most the sum's
          // rounding.
          REQUIRE(std::abs(double(digit - w) - b) <= 0.5 + 8 * kEps * double(L));
          REQUIRE(digit >= 0);
          REQUIRE(digit < L);
          REQUIRE(value == float(digit - w) / float(w));
          code += digit * base;
          base *= L;
        }
        REQUIRE(int64_t(r.codes[size_t(n)]) == code);
      }
    }
    set_worker_count(0);
  }
}

TEST_CASE("fsq: decoding and encoding again is the identity for every code", "[unit]") {
  for (const Levels& levels : grids()) {
    const FsqGrid grid = fsq_grid(levels);
    CHECK(grid.K == std::accumulate(levels.begin(), levels.end(), int64_t(1), std::multiplies<>()));
    std::vector<int32_t> codes(size_t(grid.K), 0);
    std::iota(codes.begin(), codes.end(), 0);
    const std::vector<float> values = decode(grid, codes);
    REQUIRE(values == fsq_codebook(grid));
    std::vector<float> latents;  // what is bounded to the very level
    for (size_t i = 0; i < values.size(); ++i) {
      const int64_t L = levels[i % levels.size()];
      const double half = double(L - 1) * 1.001 / 2, offset = L % 2 == 0 ? 0.5 : 0.0;
      const double b = double(values[i]) * double(L / 2);
      latents.push_back(float(std::atanh((b + offset) / half) - std::atanh(offset / half)));
    }
    const FsqResult r = quantize(grid, latents);
    REQUIRE(r.codes == codes);
    REQUIRE(r.quantized == values);
  }
}

TEST_CASE("fsq: the ends of the range are levels and a bad row gets code 0", "[unit]") {
  for (const Levels& levels : grids()) {
    const FsqGrid grid = fsq_grid(levels);
    const int64_t D = grid.D;
    for (const float end : {-3e38f, -50.0f, -9.0f, 9.0f, 50.0f, 3e38f}) {
      const FsqResult r = quantize(grid, std::vector<float>(size_t(D), end));
      CHECK(r.codes[0] == (end < 0 ? 0 : grid.K - 1));
    }
    for (const float bad : {kNaN, std::numeric_limits<float>::infinity()}) {
      std::vector<float> latents = normal_floats(7 * D, 1);
      latents[size_t(5 * D)] = bad, latents[size_t(4 * D - 1)] = bad;
      const FsqResult r = quantize(grid, latents);
      CHECK(r.first_bad_row == 3);
      CHECK(r.codes[3] == 0);
      CHECK(r.codes[5] == 0);
      for (int64_t d = 0; d < D; ++d) CHECK(r.quantized[size_t(3 * D + d)] == -1.0f);
    }
  }
}

TEST_CASE("fsq: the gradient is that of the bounded latent", "[unit]") {
  for (const Levels& levels : grids()) {
    const FsqGrid grid = fsq_grid(levels);
    const int64_t D = grid.D, N = 40;
    const std::vector<float> latents = normal_floats(N * D, 5), g = normal_floats(N * D, 6);
    Guarded<float> dz(N * D, 1);
    run(FsqBackwardOp{.d_latents = dz.view({N, D}),
                      .d_quantized = {g.data(), {N, D}},
                      .latents = {latents.data(), {N, D}},
                      .grid = grid},
        Stream{});
    dz.check_guards();
    for (size_t i = 0; i < latents.size(); ++i) {
      const int64_t L = levels[i % levels.size()];
      const double h = 1e-5, z = double(latents[i]);
      const double slope = (bounded64(L, z + h) - bounded64(L, z - h)) / (2 * h) / double(L / 2);
      // 1 - t^2 loses what t has rounded: 4 ulps of 1, times half / width <= 1.002; the difference is good to
      // 1e-9.
      CHECK(std::abs(double(dz.data()[i]) - double(g[i]) * slope) <=
            std::abs(double(g[i])) * (10 * kEps + 1e-8));
    }
  }
}

TEST_CASE("fsq: levels out of range and operands that disagree are refused", "[unit]") {
  for (const Levels& levels :
       {Levels{}, Levels{1}, Levels{8, 1}, Levels{1001}, Levels(17, 2), Levels{256, 256, 257}})
    CHECK_THROWS_AS(fsq_grid(levels), Error);
  CHECK(fsq_grid(Levels{256, 256, 256}).K == 1 << 24);
  std::vector<float> rows(6);
  std::vector<int32_t> codes(2), bad(1);
  FsqOp op{.quantized = {rows.data(), {2, 3}},
           .codes = {codes.data(), {2}},
           .first_bad_row = {bad.data(), {1}},
           .latents = {rows.data(), {2, 3}},
           .grid = fsq_grid(Levels{8, 6, 5})};
  op.check();
  op.counts = {codes.data(), {2}};
  CHECK_THROWS_AS(op.check(), Error);
  op.counts = {};
  op.grid = fsq_grid(Levels{8, 6});
  CHECK_THROWS_AS(op.check(), Error);
  op.grid = {};
  CHECK_THROWS_AS(op.check(), Error);
}

// ---- unit rows ----

namespace {

struct Shape {
  int64_t N, D;
};
constexpr Shape kShapes[] = {{1, 1}, {31, 3}, {33, 5}, {5, 16}, {40, 65}, {1000, 8}, {3, 300}};

std::vector<float> unit(const std::vector<float>& rows, int64_t D, int32_t poisoned = 0) {
  const int64_t N = int64_t(rows.size()) / D;
  Guarded<float> output(N * D, 1);
  std::copy(rows.begin(), rows.end(), output.data());  // stays where the op is poisoned
  run(UnitRowsOp{.output = output.view({N, D}), .input = {rows.data(), {N, D}}, .poisoned = {&poisoned, {1}}},
      Stream{});
  output.check_guards();
  return {output.data(), output.data() + N * D};
}

double dot(const float* a, const float* b, int64_t D) {
  double sum = 0.0;
  for (int64_t d = 0; d < D; ++d) sum += double(a[d]) * double(b[d]);
  return sum;
}

}  // namespace

TEST_CASE("unit rows: have length 1 and the direction of the row", "[unit]") {
  for (const Shape s : kShapes)
    for (const float scale : {1e-20f, 1.0f, 1e20f, 1e36f}) {
      const std::vector<float> rows = scaled(normal_floats(s.N * s.D, 1), scale), units = unit(rows, s.D);
      for (int64_t n = 0; n < s.N; ++n) {
        const double length = std::sqrt(dot(&rows[size_t(n * s.D)], &rows[size_t(n * s.D)], s.D));
        if (length < kMinimumLength) continue;
        for (int64_t d = 0; d < s.D; ++d) {
          const double expected = double(rows[size_t(n * s.D + d)]) / length;
          // Rounded to float once; 1e-13: sums of 300 terms in double.
          REQUIRE(std::abs(double(units[size_t(n * s.D + d)]) - expected) <=
                  (kEps + 1e-13) * std::abs(expected));
        }
      }
    }
}

TEST_CASE("unit rows: no direction, no finite value, a poisoned step", "[unit]") {
  CHECK(unit({0.0f, 0.0f}, 2) == std::vector<float>{0.0f, 0.0f});
  CHECK(unit({1e-30f, 0.0f}, 2)[0] == float(double(1e-30f) * (1.0 / kMinimumLength)));
  CHECK(std::isnan(unit({1.0f, kNaN}, 2)[1]));
  CHECK(std::isnan(unit({1.0f, std::numeric_limits<float>::infinity()}, 2)[1]));
  CHECK(unit({3.0f, 4.0f}, 2, 1) == std::vector<float>{3.0f, 4.0f});
  std::vector<float> rows = {0.0f, 0.0f, 2.0f, 0.0f}, g = {1.0f, 2.0f, 3.0f, 4.0f};
  run(
      UnitRowsBackwardOp{
          .d_input = {g.data(), {2, 2}}, .d_output = {g.data(), {2, 2}}, .input = {rows.data(), {2, 2}}},
      Stream{});
  CHECK(g == std::vector<float>{0.0f, 0.0f, 0.0f, 2.0f});  // in place, too
}

TEST_CASE("unit rows: the gradient is the derivative", "[unit]") {
  for (const Shape s : kShapes) {
    const std::vector<float> rows = normal_floats(s.N * s.D, 2), g = normal_floats(s.N * s.D, 3),
                             direction = normal_floats(s.N * s.D, 4);
    Guarded<float> d_rows(s.N * s.D, 1);
    run(UnitRowsBackwardOp{.d_input = d_rows.view({s.N, s.D}),
                           .d_output = {g.data(), {s.N, s.D}},
                           .input = {rows.data(), {s.N, s.D}}},
        Stream{});
    d_rows.check_guards();
    for (size_t n = 0; n < size_t(s.N); ++n) {
      const auto at = [&](double h) {  // <g, unit row> of the moved row
        double square = 0.0, product = 0.0;
        for (size_t i = n * size_t(s.D); i < (n + 1) * size_t(s.D); ++i) {
          const double x = double(rows[i]) + h * double(direction[i]);
          square += x * x, product += x * double(g[i]);
        }
        return product / std::sqrt(square);
      };
      const size_t begin = n * size_t(s.D);
      const double length = std::sqrt(dot(&rows[begin], &rows[begin], s.D)), h = 1e-4 * length;
      const double numeric = (at(h) - at(-h)) / (2 * h);
      const double size =
          std::sqrt(dot(&g[begin], &g[begin], s.D) * dot(&direction[begin], &direction[begin], s.D));
      // Third derivative of the projection, (|direction| h / length)^2, and the rounding to float.
      const double tilt = dot(&direction[begin], &direction[begin], s.D) * 1e-8;
      CHECK(std::abs(dot(d_rows.data() + begin, &direction[begin], s.D) - numeric) <=
            (4 * kEps + 4 * tilt + 1e-10) * size / length);
    }
  }
}

// ---- rotation ----

namespace {

struct Rotated {
  std::vector<float> dz;
  int32_t fallbacks;
};

Rotated rotate(const std::vector<float>& g, const std::vector<float>& latents,
               const std::vector<float>& codebook, const std::vector<int32_t>& codes, int64_t D,
               float scale = 0.0f) {
  const int64_t N = int64_t(codes.size()), K = int64_t(codebook.size()) / D;
  Guarded<float> dz(N * D, 1);
  Guarded<int32_t> fallbacks(1, 1);
  run(RotationBackwardOp{.d_latents = dz.view({N, D}),
                         .fallbacks = fallbacks.view({1}),
                         .d_quantized = {g.data(), {N, D}},
                         .latents = {latents.data(), {N, D}},
                         .codebook = {codebook.data(), {K, D}},
                         .codes = {codes.data(), {N}},
                         .commitment_scale = scale},
      Stream{});
  dz.check_guards(), fallbacks.check_guards();
  return {{dz.data(), dz.data() + N * D}, *fallbacks.data()};
}

std::vector<int32_t> some_codes(int64_t N, int64_t K) {
  std::vector<int32_t> codes(size_t(N), 0);
  for (size_t n = 0; n < codes.size(); ++n) codes[n] = int32_t(int64_t(n) * 7 % K);
  return codes;
}

}  // namespace

TEST_CASE("rotation: turns and stretches the gradient as the latent is turned to its code", "[unit]") {
  for (const Shape s : kShapes) {
    if (s.D == 1) continue;
    const int64_t K = 5;
    const std::vector<float> z = normal_floats(s.N * s.D, 1), e = normal_floats(K * s.D, 2),
                             g = normal_floats(s.N * s.D, 3);
    const std::vector<int32_t> codes = some_codes(s.N, K);
    const Rotated r = rotate(g, z, e, codes, s.D);
    CHECK(r.fallbacks == 0);
    for (int64_t n = 0; n < s.N; ++n) {
      const float *zn = &z[size_t(n * s.D)], *gn = &g[size_t(n * s.D)], *dn = &r.dz[size_t(n * s.D)],
                  *q = &e[size_t(codes[size_t(n)] * s.D)];
      const double zz = std::sqrt(dot(zn, zn, s.D)), qq = std::sqrt(dot(q, q, s.D)), scale = qq / zz;
      const double gg = std::sqrt(dot(gn, gn, s.D));
      // The lengths stand in the ratio of the forward stretch.
      CHECK(std::abs(std::sqrt(dot(dn, dn, s.D)) - scale * gg) <= 2 * kEps * scale * gg);
      // s R z = q: for every g, <dz, z> = <g, s R z> = <g, q>.
      CHECK(std::abs(dot(dn, zn, s.D) - dot(gn, q, s.D)) <= 2 * kEps * scale * gg * zz);
      // The definition with its matrix.
      std::vector<double> u(size_t(s.D), 0.0), v(u), w(u);
      double length = 0.0;
      for (size_t d = 0; d < u.size(); ++d) {
        u[d] = double(zn[d]) / zz, v[d] = double(q[d]) / qq, w[d] = u[d] + v[d];
        length += w[d] * w[d];
      }
      for (size_t d = 0; d < u.size(); ++d) {
        double turned = double(gn[d]);  // row d of R^T times g
        for (size_t j = 0; j < u.size(); ++j)
          turned += double(gn[j]) * (2 * u[d] * v[j] - 2 * w[d] * w[j] / length);
        CHECK(std::abs(double(dn[d]) - scale * turned) <=
              kEps * scale * std::abs(turned) + 1e-12 * scale * gg);
      }
    }
  }
}

TEST_CASE("rotation: a latent parallel to its code only stretches", "[unit]") {
  const std::vector<float> z = {1.0f, -2.0f, 0.5f}, e = {4.0f, -8.0f, 2.0f}, g = {0.3f, 0.7f, -1.1f};
  const Rotated r = rotate(g, z, e, {0}, 3);
  CHECK(r.fallbacks == 0);
  for (size_t d = 0; d < 3; ++d) CHECK(std::abs(r.dz[d] - 4.0f * g[d]) <= 8 * float(kEps) * std::abs(g[d]));
}

TEST_CASE("rotation: rows without a rotation get the straight-through gradient and are counted", "[unit]") {
  const auto straight_through = [](const std::vector<float>& g, const std::vector<float>& z,
                                   const std::vector<float>& e, const std::vector<int32_t>& codes,
                                   int64_t D) {
    std::vector<float> dz(g.size());
    const int64_t N = int64_t(codes.size());
    run(StraightThroughBackwardOp{.d_latents = {dz.data(), {N, D}},
                                  .d_quantized = {g.data(), {N, D}},
                                  .latents = {z.data(), {N, D}},
                                  .codebook = {e.data(), {int64_t(e.size()) / D, D}},
                                  .codes = {codes.data(), {N}},
                                  .commitment_scale = 0.5f},
        Stream{});
    return dz;
  };
  // Opposite, zero latent, tiny latent, zero code.
  const std::vector<float> z = {1.0f, -2.0f, 0.0f, 0.0f, 1e-7f, 0.0f, 1.0f, 1.0f},
                           e = {-3.0f, 6.0f, 0.0f, 0.0f}, g = normal_floats(8, 1);
  const std::vector<int32_t> codes = {0, 0, 0, 1};
  Rotated r = rotate(g, z, e, codes, 2, 0.5f);
  CHECK(r.fallbacks == 4);
  CHECK(r.dz == straight_through(g, z, e, codes, 2));
  const std::vector<float> one = normal_floats(700, 2);  // D = 1
  const std::vector<int32_t> many = some_codes(700, 4);
  r = rotate(one, normal_floats(700, 3), e, many, 1, 0.5f);
  CHECK(r.fallbacks == 700);
  CHECK(r.dz == straight_through(one, normal_floats(700, 3), e, many, 1));
  // A value that is not finite spreads in its own row and is no fallback.
  r = rotate({1.0f, 1.0f, 1.0f, 1.0f}, {1.0f, kNaN, 1.0f, 2.0f}, {2.0f, 2.0f}, {0, 0}, 2);
  CHECK(r.fallbacks == 0);
  CHECK(std::isnan(r.dz[0]));
  CHECK(std::isfinite(r.dz[2]));
}

TEST_CASE("rotation: the commitment term is that of the straight-through gradient", "[unit]") {
  const std::vector<float> z = normal_floats(60, 1), e = normal_floats(12, 2), g = normal_floats(60, 3);
  const std::vector<int32_t> codes = some_codes(15, 3);
  const Rotated without = rotate(g, z, e, codes, 4), with = rotate(g, z, e, codes, 4, 0.37f);
  for (size_t i = 0; i < 60; ++i)
    CHECK(with.dz[i] == without.dz[i] + 0.37f * (z[i] - e[size_t(codes[i / 4]) * 4 + i % 4]));
}

}  // namespace vqlab::testing
