// Convolutions of less precision on the device: the casts, and the three ops, against the CPU.
#include <bit>
#include <cmath>
#include <limits>

#include "conv_shapes.hpp"
#include "kernels/conv/cast.hpp"

namespace vqlab::testing {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

// Normal numbers, and the special ones in between.
Floats mixed_floats(int64_t count, uint64_t seed) {
  constexpr uint32_t kSpecial[] = {0x3F808000, 0x3F818000, 0x00000001, 0x80018000, 0x7F7F8000, 0x7F800000,
                                   0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0x3F801000, 0x7F7FF000};
  Floats values = normal_floats(count, seed);
  for (size_t i = 0; i < values.size(); i += 3) values[i] = std::bit_cast<float>(kSpecial[i / 3 % 12]);
  return values;
}

bool same_or_both_nan(float a, float b) {
  return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b));
}

constexpr Shape kShapes[] = {
    {8, 28, 28, 1, 16, 8, 16, {kNormal, 4, 2, 1}},     {9, 7, 7, 32, 32, 32, 32, {kNormal, 3, 1, 1}},
    {9, 7, 7, 32, 16, 32, 16, {kNormal, 1, 1, 0}},     {9, 7, 7, 32, 16, 32, 16, {kTransposed, 4, 2, 1}},
    {8, 14, 14, 16, 1, 16, 8, {kTransposed, 4, 2, 1}}, {3, 5, 7, 3, 3, 3, 3, {kTransposed, 3, 2, 0}}};

// The three ops on views of either device, whose images have input[3] and d_output[3] channels.
void run_ops(const Shape& s, Precision precision, const View<float>& output, const View<float>& d_input,
             float* d_weight, float* d_bias, const View<const float>& input, const float* weight,
             const float* bias, const View<const float>& d_output, const View<std::byte>& scratch,
             WeightGradient method, Stream stream) {
  run(ConvForwardOp{.output = output,
                    .input = input,
                    .weight = weight_view(s, weight),
                    .bias = {bias, {s.O}},
                    .geometry = s.g,
                    .activation = Activation::relu,
                    .scratch = scratch,
                    .precision = precision},
      stream);
  run(ConvBackwardDataOp{.d_input = d_input,
                         .d_output = d_output,
                         .weight = weight_view(s, weight),
                         .geometry = s.g,
                         .scratch = scratch,
                         .precision = precision,
                         .mask = input},
      stream);
  run(ConvBackwardWeightOp{.d_weight = weight_view(s, d_weight),
                           .d_bias = {d_bias, {s.O}},
                           .d_output = d_output,
                           .input = input,
                           .geometry = s.g,
                           .scratch = scratch,
                           .method = method,
                           .precision = precision},
      stream);
}

Results run_on_cpu(const Shape& s, Operands in, Precision precision) {
  Results r{Floats(in.d_output.size()), Floats(in.input.size()), Floats(in.weight.size()),
            Floats(size_t(s.O))};
  const View<float> input(in.input.data(), {s.B, s.H, s.W, s.I}),
      d_output(in.d_output.data(), {s.B, s.OH(), s.OW(), s.O});
  View<float> output = d_output, d_input = input;
  output.data = r.output.data(), d_input.data = r.d_input.data();
  std::vector<std::byte> memory(size_t(conv_scratch_bytes(Device::cpu, s.g, input, s.O, precision)));
  run_ops(s, precision, output, d_input, r.d_weight.data(), r.d_bias.data(), input, in.weight.data(),
          in.bias.data(), d_output, {memory.data(), {int64_t(memory.size())}}, WeightGradient::automatic,
          Stream{});
  return r;
}

Results run_on_device(const Shape& s, const Operands& in, Precision precision, WeightGradient method) {
  const DeviceArray<float> input(padded(in.input, s.I, s.input)), weight(in.weight), bias(in.bias),
      d_output(padded(in.d_output, s.O, s.output)), output(d_output.size()), d_input(input.size()),
      d_weight(weight.size()), d_bias(s.O);
  const std::initializer_list<int64_t> inputs = {s.B, s.H, s.W, s.input},
                                       outputs = {s.B, s.OH(), s.OW(), s.output};
  const DeviceScratch scratch(conv_scratch_bytes(Device::cuda, s.g, input.view(inputs), s.output, precision));
  run_ops(s, precision, output.view(outputs), d_input.view(inputs), d_weight.data(), d_bias.data(),
          input.view(inputs), weight.data(), bias.data(), d_output.view(outputs), scratch.view(), method,
          device_stream());
  scratch.check_bands();
  return {output.download(), d_input.download(), d_weight.download(), d_bias.download()};
}

// Both are sums of `terms` products of equal operands in some order, each as far from the exact sum as
// sum_tolerance() of the CPU's tests allows. Rounded to bf16 they may fall on two neighbours: 2^-7 of a
// result below 6 standard deviations.
void require_sums_close(const Floats& actual, const Floats& expected, int64_t terms, bool rounded,
                        const std::string& what) {
  const double neighbours = rounded ? std::ldexp(6.0 * std::sqrt(double(terms)), -7) : 0.0;
  require_close(View<const float>(actual.data(), {int64_t(actual.size())}),
                std::vector<double>(expected.begin(), expected.end()),
                8.0 * kEpsilon * double(terms + 4) + neighbours, what);
}

}  // namespace

TEST_CASE("device precision: casts to bf16 and back have the bits of the CPU", "[device]") {
  for (const int64_t size : {1, 3, 4, 255, 1024, 4099})
    for (const int64_t offset : {0, 1})
      for_each_schedule([&] {
        const Floats values = mixed_floats(size, 5);
        const DeviceArray<float> input(values, offset), back(size, offset);
        const DeviceArray<uint16_t> halves(size, offset);
        to_bf16_cuda(halves.view(), input.view(), device_stream());
        from_bf16_cuda(back.view({size, 1}), halves.view({size, 1}), {}, 1, Activation::none,
                       device_stream());
        Floats expected = values;
        round_to(Precision::bf16, expected.data(), expected.data(), size);
        const Floats actual = back.download();
        halves.download();  // its guard bands
        int wrong = 0;
        for (size_t i = 0; i < actual.size(); ++i)
          wrong += std::memcmp(&actual[i], &expected[i], 4) != 0;  // NaN keeps its bits too
        CHECK(wrong == 0);
      });
}

TEST_CASE("device precision: the cast from bf16 adds bias, ReLU and zeros at any width", "[device]") {
  for (const int64_t C : {1, 3, 4, 8, 33})
    for (const int64_t rows : {1, 7, 300})
      for (const int64_t offset : {0, 1})
        for_few_schedules([&] {
          const int64_t channels = (C + 1) / 2;
          std::vector<uint16_t> halves;
          for (const float value : mixed_floats(rows * C, 6))
            halves.push_back(to_bf16(std::bit_cast<uint32_t>(value)));
          const Floats bias = normal_floats(channels, 7);
          const DeviceArray<uint16_t> input(halves, offset);
          const DeviceArray<float> output(rows * C, offset), device_bias(bias, offset);
          from_bf16_cuda(output.view({rows, C}), input.view({rows, C}), device_bias.view(), channels,
                         Activation::relu, device_stream());
          const Floats actual = output.download();
          int wrong = 0;
          for (int64_t i = 0; i < rows * C; ++i) {
            const float value = std::bit_cast<float>(uint32_t(halves[size_t(i)]) << 16);
            const float x = i % C < channels ? value + bias[size_t(i % C)] : 0.0f;
            wrong += !same_or_both_nan(actual[size_t(i)], x <= 0.0f ? 0.0f : x);
          }
          CHECK(wrong == 0);
        });
}

TEST_CASE("device precision: the three ops equal those of the CPU, padding channels are zero", "[device]") {
  for (const Precision precision : {Precision::tf32, Precision::bf16})  // fp32: test_device_conv.cpp
    for (const Shape& s : kShapes) {
      const Operands operands(s);
      const Results expected = run_on_cpu(s, operands, precision);
      const auto check = [&](WeightGradient method) {
        const Results actual = run_on_device(s, operands, precision, method);
        const int64_t pixels = s.normal() ? s.OH() * s.OW() : s.H * s.W;
        const bool bf16 = precision == Precision::bf16;
        const std::string what = fmt::format("{} in {}", s.text(), precision_name(precision));
        require_sums_close(actual.output, padded(expected.output, s.O, s.output), s.I * s.area(), bf16,
                           what + ": output");
        require_sums_close(actual.d_input, padded(expected.d_input, s.I, s.input), s.O * s.area(), bf16,
                           what + ": d_input");
        require_sums_close(actual.d_weight, expected.d_weight, s.B * pixels, false, what + ": d_weight");
        INFO(what);
        CHECK((actual.d_bias == expected.d_bias));  // of gradients that are not rounded, in the same order
      };
      check(WeightGradient::split_rows);
      for_few_schedules([&] { check(WeightGradient::automatic); });
    }
}

}  // namespace vqlab::testing
