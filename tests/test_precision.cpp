// Products of less precision: the rounding itself, and convolutions on rounded operands.
#include <rapidcheck.h>

#include <cmath>

#include "conv_reference.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

using Shape = ConvShape;

float rounded(float value, Precision precision) {
  round_to(precision, &value, &value, 1);
  return value;
}

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

std::vector<float> rounded(std::vector<float> values, Precision precision) {
  round_to(precision, values.data(), values.data(), int64_t(values.size()));
  return values;
}

// The nearest number with so many bits of mantissa, in double, where such a number and its spacing are exact.
double nearest(double value, int mantissa, bool ties_to_even) {
  const int exponent = std::max(std::ilogb(value), -126);  // denormal numbers have the smallest spacing
  const double spacing = std::ldexp(1.0, exponent - mantissa), places = value / spacing;
  return (ties_to_even ? std::nearbyint(places) : std::round(places)) * spacing;  // round: away from zero
}

// The results of the three ops.
struct Results {
  std::vector<float> output, d_input, d_weight, d_bias;
  bool operator==(const Results&) const = default;
};

struct Operands {
  std::vector<float> input, weight, bias, d_output;
  explicit Operands(const Shape& s)
      : input(normal_floats(s.input_size(), 1)),
        weight(normal_floats(s.weight_size(), 2)),
        bias(normal_floats(s.O, 3)),
        d_output(normal_floats(s.output_size(), 4)) {}
};

Results run_ops(const Shape& s, Operands in, Precision precision, Activation activation) {
  Results r{std::vector<float>(in.d_output.size()), std::vector<float>(in.input.size()),
            std::vector<float>(in.weight.size()), std::vector<float>(in.bias.size())};
  const std::initializer_list<int64_t> weight_dims = {s.normal() ? s.O : s.I, s.g.kernel, s.g.kernel,
                                                      s.normal() ? s.I : s.O};
  const View<const float> input(in.input.data(), {s.B, s.H, s.W, s.I}), weight(in.weight.data(), weight_dims),
      d_output(in.d_output.data(), {s.B, s.OH(), s.OW(), s.O});
  Guarded<std::byte> scratch(conv_scratch_bytes(Device::cpu, s.g, input, s.O, precision), 4);
  const View<std::byte> memory = scratch.view({scratch.size()});
  run(ConvForwardOp{.output = {r.output.data(), {s.B, s.OH(), s.OW(), s.O}},
                    .input = input,
                    .weight = weight,
                    .bias = {in.bias.data(), {s.O}},
                    .geometry = s.g,
                    .activation = activation,
                    .scratch = memory,
                    .precision = precision},
      Stream{});
  run(ConvBackwardDataOp{.d_input = {r.d_input.data(), {s.B, s.H, s.W, s.I}},
                         .d_output = d_output,
                         .weight = weight,
                         .geometry = s.g,
                         .scratch = memory,
                         .precision = precision},
      Stream{});
  run(ConvBackwardWeightOp{.d_weight = {r.d_weight.data(), weight_dims},
                           .d_bias = {r.d_bias.data(), {s.O}},
                           .d_output = d_output,
                           .input = input,
                           .geometry = s.g,
                           .scratch = memory,
                           .precision = precision},
      Stream{});
  scratch.check_guards();
  return r;
}

View<const float> view_of(const std::vector<float>& values) {
  return {values.data(), {int64_t(values.size())}};
}

// The largest error of rounding a result of `terms` products of normal numbers to bf16: half of 2^-7 of its
// power of two; the largest of many such results is below 6 standard deviations, and the bias's 6 more.
double result_rounding(int64_t terms, Precision precision) {
  return precision == Precision::bf16 ? std::ldexp(6.0 * std::sqrt(double(terms)), -8) : 0.0;
}

}  // namespace

TEST_CASE("precision: rounding, case by case", "[unit]") {
  struct Case {
    Precision precision;
    uint32_t value, expected;
  };
  constexpr Precision kTf32 = Precision::tf32, kBf16 = Precision::bf16;
  constexpr Case kCases[] = {
      {Precision::fp32, 0x3F812345, 0x3F812345},
      // bf16: ties to even, both ways; above and below a tie; the carry into the exponent
      {kBf16, 0x3F808000, 0x3F800000},
      {kBf16, 0x3F818000, 0x3F820000},
      {kBf16, 0x3F808001, 0x3F810000},
      {kBf16, 0x3F817FFF, 0x3F810000},
      {kBf16, 0x3FFF8000, 0x40000000},
      {kBf16, 0xBF818000, 0xBF820000},
      // zeros, denormal numbers (of which the smallest vanish), infinities
      {kBf16, 0x00000000, 0x00000000},
      {kBf16, 0x80000000, 0x80000000},
      {kBf16, 0x00000001, 0x00000000},
      {kBf16, 0x00008000, 0x00000000},
      {kBf16, 0x00008001, 0x00010000},
      {kBf16, 0x80018000, 0x80020000},
      {kBf16, 0x007FFFFF, 0x00800000},
      {kBf16, 0x7F800000, 0x7F800000},
      {kBf16, 0xFF800000, 0xFF800000},
      // the largest that stays finite, and overflow
      {kBf16, 0x7F7F7FFF, 0x7F7F0000},
      {kBf16, 0x7F7F8000, 0x7F800000},
      {kBf16, 0xFF7FFFFF, 0xFF800000},
      // NaN, also one whose bits are all in the lower half
      {kBf16, 0x7FC00000, 0x7FC00000},
      {kBf16, 0x7F800001, 0x7FC00000},
      {kBf16, 0xFFFFFFFF, 0xFFFF0000},
      // tf32: ties away from zero
      {kTf32, 0x3F801000, 0x3F802000},
      {kTf32, 0x3F803000, 0x3F804000},
      {kTf32, 0xBF801000, 0xBF802000},
      {kTf32, 0x3F800FFF, 0x3F800000},
      {kTf32, 0x3FFFF000, 0x40000000},
      {kTf32, 0x00000FFF, 0x00000000},
      {kTf32, 0x00001000, 0x00002000},
      {kTf32, 0x80000000, 0x80000000},
      {kTf32, 0x7F7FEFFF, 0x7F7FE000},
      {kTf32, 0x7F7FF000, 0x7F800000},
      {kTf32, 0x7F800000, 0x7F800000},
      {kTf32, 0xFF800000, 0xFF800000}};
  for (const Case& c : kCases) {
    INFO(precision_name(c.precision) << " of " << fmt::format("{:08x}", c.value));
    CHECK(bits_of(rounded(std::bit_cast<float>(c.value), c.precision)) == c.expected);
  }
  for (const uint32_t nan : {0x7F800001u, 0x7FC00000u, 0xFF801FFFu, 0xFFFFFFFFu})
    for (const Precision precision : {Precision::tf32, Precision::bf16})
      CHECK(std::isnan(rounded(std::bit_cast<float>(nan), precision)));
}

TEST_CASE("precision: rounding is to the nearest, for any number", "[unit]") {
  const auto property = [](uint32_t bits) {
    const float value = std::bit_cast<float>(bits);
    RC_PRE(std::isfinite(value) && value != 0.0f);
    RC_ASSERT(rounded(value, Precision::bf16) == float(nearest(value, 7, true)));
    RC_ASSERT(rounded(value, Precision::tf32) == float(nearest(value, 10, false)));
  };
  CHECK(rc::check("rounding", property));
}

TEST_CASE("precision: any count, in place or not", "[unit]") {
  for (const int64_t count : kSizes)
    for (const Precision precision : {Precision::fp32, Precision::tf32, Precision::bf16}) {
      Buffer in(normal_floats(count, 5)), out(count);
      round_to(precision, out.data(), in.data(), count);
      out.check_guards();
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) wrong += out.data()[i] != rounded(in.data()[i], precision);
      CHECK(wrong == 0);
      round_to(precision, in.data(), in.data(), count);
      CHECK(same_bits(in.values(), out.values()));
    }
}

// Products of rounded operands are exact, so the bound is that of fp32 sums, and in bf16 the rounding of the
// result. Of the gradients this is the check against the definition: rounding counts as the identity.
TEST_CASE("precision: the three ops equal the definition on rounded operands", "[unit]") {
  for (const Precision precision : {Precision::tf32, Precision::bf16})
    for (const Shape& s : conv_shapes()) {
      const Operands in(s);
      const Results r = run_ops(s, in, precision, Activation::none);
      const Doubles input = widen(rounded(in.input, precision)),
                    weight = widen(rounded(in.weight, precision)),
                    d_output = widen(rounded(in.d_output, precision));
      const int64_t area = s.g.kernel * s.g.kernel, pixels = s.normal() ? s.OH() * s.OW() : s.H * s.W;
      const std::string what = fmt::format("{} in {}", s.text(), precision_name(precision));
      require_close(view_of(r.output), reference_forward(s, input, weight, widen(in.bias)),
                    sum_tolerance(s.I * area) + result_rounding(s.I * area, precision), what);
      require_close(view_of(r.d_input), reference_d_input(s, d_output, weight),
                    sum_tolerance(s.O * area) + result_rounding(s.O * area, precision), what + ": d_input");
      require_close(view_of(r.d_weight), reference_d_weight(s, d_output, input), sum_tolerance(s.B * pixels),
                    what + ": d_weight");
      require_close(view_of(r.d_bias), reference_d_bias(s, widen(in.d_output)),
                    sum_tolerance(s.B * s.OH() * s.OW()), what + ": d_bias");  // of what was not rounded
    }
}

TEST_CASE("precision: bits are those of fp32 on rounded operands", "[unit]") {
  for (const Precision precision : {Precision::tf32, Precision::bf16})
    for (const Shape& s : conv_shapes()) {
      INFO(s.text() << " in " << precision_name(precision));
      const Operands in(s);
      Operands copies(s), unbiased(s);
      for (Operands* o : {&copies, &unbiased}) {
        o->input = rounded(in.input, precision);
        o->weight = rounded(in.weight, precision);
        o->d_output = rounded(in.d_output, precision);
      }
      unbiased.bias.assign(unbiased.bias.size(), 0.0f);
      const Results actual = run_ops(s, in, precision, Activation::relu),
                    fp32 = run_ops(s, copies, Precision::fp32, Activation::relu),
                    plain = run_ops(s, unbiased, Precision::fp32, Activation::none);
      CHECK(actual.d_weight == fp32.d_weight);
      if (precision == Precision::tf32) {
        CHECK(actual.output == fp32.output);
        CHECK(actual.d_input == fp32.d_input);
        continue;
      }
      CHECK(actual.d_input == rounded(fp32.d_input, precision));
      std::vector<float> expected = rounded(plain.output, precision);
      for (size_t i = 0; i < expected.size(); ++i)
        expected[i] = std::max(expected[i] + in.bias[i % size_t(s.O)], 0.0f);
      CHECK(actual.output == expected);
    }
}

TEST_CASE("precision: results do not depend on the number of threads", "[unit]") {
  for (const Precision precision : {Precision::tf32, Precision::bf16})
    for (const Shape& s : conv_shapes()) {
      INFO(s.text() << " in " << precision_name(precision));
      const Operands in(s);
      const Results one = [&] {
        const WorkerCount workers(1);
        return run_ops(s, in, precision, Activation::relu);
      }();
      const WorkerCount workers(3);
      CHECK(run_ops(s, in, precision, Activation::relu) == one);
    }
}

TEST_CASE("precision: NaN and infinity reach the results", "[unit]") {
  for (const Precision precision : {Precision::tf32, Precision::bf16})
    for (const float bad : {std::nanf(""), -std::nanf(""), std::bit_cast<float>(0x7F800001u)})
      for (const Shape& s : conv_shapes()) {
        INFO(s.text() << " in " << precision_name(precision));
        Operands in(s);
        in.input.assign(in.input.size(), bad);
        in.d_output.assign(in.d_output.size(), bad);
        const Results r = run_ops(s, in, precision, Activation::relu);
        CHECK(std::isnan(r.output[size_t(s.O) * size_t(s.OW() + 1)]));  // all of whose terms are NaN
        CHECK(std::isnan(r.d_bias[0]));
      }
}

TEST_CASE("precision: too little scratch for the rounded copies is refused", "[bad-input]") {
  const ConvGeometry g{.kernel = 3, .padding = 1};
  const View<const float> input(nullptr, {9, 8, 8, 16});
  CHECK(conv_scratch_bytes(Device::cpu, g, input, 16, Precision::bf16) >
        conv_scratch_bytes(Device::cpu, g, input, 16));
  std::vector<float> x(9 * 8 * 8 * 16), w(16 * 9 * 16), y(x.size());
  std::vector<std::byte> memory(size_t(conv_scratch_bytes(Device::cpu, g, input, 16)));
  const ConvForwardOp op{.output = {y.data(), {9, 8, 8, 16}},
                         .input = {x.data(), {9, 8, 8, 16}},
                         .weight = {w.data(), {16, 3, 3, 16}},
                         .bias = {},
                         .geometry = g,
                         .activation = Activation::none,
                         .scratch = {memory.data(), {int64_t(memory.size())}},
                         .precision = Precision::bf16};
  CHECK_THROWS_AS(run(op, Stream{}), Error);
}

TEST_CASE("precision: every name is known, others are refused", "[bad-input]") {
  for (const Precision precision : {Precision::fp32, Precision::tf32, Precision::bf16})
    CHECK(parse_precision(precision_name(precision)) == precision);
  for (const char* name : {"", "fp16", "BF16", "bf16 "}) CHECK_THROWS_AS(parse_precision(name), Error);
}

TEST_CASE("precision: an unknown value of the key is an error with the nearest name", "[bad-input]") {
  try {
    parse_config("[train]\nprecision = \"bf61\"", "tiny", {});
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(std::string(error.what()).find("train.precision = \"bf61\" is not known") != std::string::npos);
    CHECK(error.hint().find("did you mean bf16?") != std::string::npos);
    CHECK(error.where() == "tiny:2");
  }
}

TEST_CASE("precision: a run learns in each, repeats bit for bit, and differs from the others", "[unit]") {
  Lab lab;
  std::vector<std::string> weights;
  std::vector<double> mse;
  for (const char* precision : {"fp32", "tf32", "bf16"}) {
    INFO(precision);
    const std::vector<std::string> set = {std::string("train.precision=") + precision};
    const std::string name = precision;
    weights.push_back(lab.train(name, set, 12).weights_sha256);
    mse.push_back(lab.observer.mse.back());
    lab.train(name + "-cut", set, 5);
    CHECK(lab.train(name + "-cut", {}, 12, RunAccess::resume).weights_sha256 == weights.back());
  }
  CHECK(weights[0] != weights[1]);
  CHECK(weights[1] != weights[2]);
  // Not a bound of rounding, which training amplifies, but of learning: the first epoch's error.
  for (const double value : mse) CHECK(std::abs(value - mse[0]) <= 0.1 * mse[0]);
}

}  // namespace vqlab::testing
