// Convolutions on the device against those on the CPU, and what surrounds the library's convolution.
#include <cmath>
#include <limits>

#include "conv_shapes.hpp"
#include "kernels/conv/conv_bias.hpp"
#include "kernels/conv/conv_problem.hpp"
#include "kernels/conv/pad_channels.hpp"

namespace vqlab::testing {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

constexpr Shape kShapes[] = {
    {8, 28, 28, 1, 16, 8, 16, {kNormal, 4, 2, 1}},     {9, 14, 14, 16, 32, 16, 32, {kNormal, 4, 2, 1}},
    {9, 7, 7, 32, 32, 32, 32, {kNormal, 3, 1, 1}},     {9, 7, 7, 32, 16, 32, 16, {kNormal, 1, 1, 0}},
    {9, 7, 7, 32, 16, 32, 16, {kTransposed, 4, 2, 1}}, {8, 14, 14, 16, 1, 16, 8, {kTransposed, 4, 2, 1}},
    {3, 9, 8, 3, 5, 8, 8, {kNormal, 3, 2, 0}},         {3, 5, 7, 3, 3, 8, 8, {kTransposed, 3, 2, 0}},
    {2, 5, 7, 1, 1, 1, 1, {kNormal, 3, 2, 0}},         {3, 5, 7, 30, 3, 30, 3, {kTransposed, 4, 2, 1}}};

Results run_on_cpu(const Shape& s, Operands& in, Activation activation) {
  Results out{Floats(in.d_output.size()), Floats(in.input.size()), Floats(in.weight.size()),
              Floats(in.bias.size())};
  const View<const float> input(in.input.data(), {s.B, s.H, s.W, s.I});
  const View<const float> d_output(in.d_output.data(), {s.B, s.OH(), s.OW(), s.O});
  const View<const float> weight = weight_view<const float>(s, in.weight.data());
  std::vector<std::byte> memory(size_t(conv_scratch_bytes(Device::cpu, s.g, input, s.O)));
  const View<std::byte> scratch(memory.data(), {int64_t(memory.size())});
  run(ConvForwardOp{{out.output.data(), {s.B, s.OH(), s.OW(), s.O}},
                    input,
                    weight,
                    {in.bias.data(), {s.O}},
                    s.g,
                    activation,
                    scratch},
      Stream{});
  run(ConvBackwardDataOp{{out.d_input.data(), {s.B, s.H, s.W, s.I}}, d_output, weight, s.g, scratch},
      Stream{});
  run(
      ConvBackwardWeightOp{
          weight_view(s, out.d_weight.data()), {out.d_bias.data(), {s.O}}, d_output, input, s.g, scratch},
      Stream{});
  return out;
}

Results run_on_device(const Shape& s, const Operands& in, Activation activation) {
  const DeviceArray<float> input(padded(in.input, s.I, s.input)), weight(in.weight), bias(in.bias),
      d_output(padded(in.d_output, s.O, s.output)), output(s.B * s.OH() * s.OW() * s.output),
      d_input(s.B * s.H * s.W * s.input), d_weight(int64_t(in.weight.size())), d_bias(s.O);
  const View<float> input_view = input.view({s.B, s.H, s.W, s.input}),
                    d_output_view = d_output.view({s.B, s.OH(), s.OW(), s.output});
  const DeviceScratch scratch(conv_scratch_bytes(Device::cuda, s.g, input_view, s.output));
  const Stream stream = device_stream();
  run(ConvForwardOp{output.view({s.B, s.OH(), s.OW(), s.output}), input_view, weight_view(s, weight.data()),
                    bias.view(), s.g, activation, scratch.view()},
      stream);
  run(ConvBackwardDataOp{d_input.view({s.B, s.H, s.W, s.input}), d_output_view, weight_view(s, weight.data()),
                         s.g, scratch.view()},
      stream);
  run(ConvBackwardWeightOp{weight_view(s, d_weight.data()), d_bias.view(), d_output_view, input_view, s.g,
                           scratch.view()},
      stream);
  scratch.check_bands();
  return {output.download(), d_input.download(), d_weight.download(), d_bias.download()};
}

// Both are sums of `terms` products of standard normal numbers in some order, each as far from the exact sum
// as sum_tolerance() of the CPU's tests allows.
void require_sums_close(const Floats& actual, const Floats& expected, int64_t terms,
                        const std::string& what) {
  require_close(View<const float>(actual.data(), {int64_t(actual.size())}),
                std::vector<double>(expected.begin(), expected.end()), 8.0 * kEpsilon * double(terms + 4),
                what);
}

}  // namespace

TEST_CASE("device conv: the three ops equal those of the CPU, padding channels are zero", "[device]") {
  for (const Shape& s : kShapes)
    for (const Activation activation : {Activation::none, Activation::relu}) {
      Operands operands(s);
      const Results expected = run_on_cpu(s, operands, activation);
      for_few_schedules([&] {
        const Results actual = run_on_device(s, operands, activation);
        const int64_t area = s.g.kernel * s.g.kernel, pixels = s.normal() ? s.OH() * s.OW() : s.H * s.W;
        require_sums_close(actual.output, padded(expected.output, s.O, s.output), s.I * area,
                           s.text() + ": output");
        require_sums_close(actual.d_input, padded(expected.d_input, s.I, s.input), s.O * area,
                           s.text() + ": d_input");
        require_sums_close(actual.d_weight, expected.d_weight, s.B * pixels, s.text() + ": d_weight");
        INFO(s.text());
        CHECK((actual.d_bias == expected.d_bias));  // in the same order
      });
    }
}

TEST_CASE("device conv: the same bits each time", "[device]") {
  for (const Shape& s : kShapes) {
    INFO(s.text());
    const Operands operands(s);
    const Results first = run_on_device(s, operands, Activation::relu);
    for (int i = 0; i < (memory_is_checked() ? 1 : 3); ++i) {
      const Results again = run_on_device(s, operands, Activation::relu);
      CHECK((first.output == again.output));
      CHECK((first.d_input == again.d_input));
      CHECK((first.d_weight == again.d_weight));
      CHECK((first.d_bias == again.d_bias));
    }
  }
}

TEST_CASE("device conv: NaN passes the ReLU, and padding channels stay zero beside it", "[device]") {
  for (const Shape& s : kShapes) {
    INFO(s.text());
    Operands operands(s);
    operands.input.assign(operands.input.size(), std::nanf(""));
    operands.d_output.assign(operands.d_output.size(), std::nanf(""));
    const Results actual = run_on_device(s, operands, Activation::relu);
    int wrong = 0;
    for (size_t i = 0; i < actual.output.size(); ++i)
      wrong += int64_t(i) % s.output >= s.O && actual.output[i] != 0.0f;
    for (size_t i = 0; i < actual.d_input.size(); ++i)
      wrong += int64_t(i) % s.input >= s.I && actual.d_input[i] != 0.0f;
    CHECK(wrong == 0);
    CHECK(std::isnan(actual.output[size_t(s.output) * size_t(s.OW() + 1)]));  // all of whose terms are NaN
    CHECK(std::isnan(actual.d_bias[0]));
  }
}

TEST_CASE("device conv: bias and ReLU at any alignment and width", "[device]") {
  for (const int64_t C : {1, 3, 4, 8, 33})
    for (const int64_t rows : {1, 7, 1000})
      for (const int64_t offset : {0, 1})
        for_each_schedule([&] {
          const int64_t channels = (C + 1) / 2;
          Floats values = normal_floats(rows * C, 5), bias = normal_floats(channels, 6);
          values[0] = std::nanf("");
          const DeviceArray<float> tensor(values, offset), device_bias(bias, offset);
          add_conv_bias_cuda(tensor.view({rows, C}), device_bias.view(), channels, Activation::relu,
                             device_stream());
          const Floats actual = tensor.download();
          int wrong = 0;
          for (int64_t i = 0; i < rows * C; ++i) {
            const float x = i % C < channels ? values[size_t(i)] + bias[size_t(i % C)] : 0.0f;
            const float expected = x <= 0.0f ? 0.0f : x;
            wrong += std::memcmp(&actual[size_t(i)], &expected, 4) != 0 &&
                     !(std::isnan(expected) && std::isnan(actual[size_t(i)]));
          }
          CHECK(wrong == 0);
        });
}

TEST_CASE("device conv: the gradient of the bias adds columns at any shape", "[device]") {
  for (const int64_t C : {1, 3, 8, 33, 100})
    for (const int64_t rows : {1, 15, 4097})
      for (const int64_t columns : {C, (C + 1) / 2})
        for_few_schedules([&] {
          const Floats values = normal_floats(rows * C, 7);
          std::vector<double> expected(size_t(columns), 0.0);
          for (int64_t i = 0; i < rows * C; ++i)
            if (i % C < columns) expected[size_t(i % C)] += values[size_t(i)];
          const DeviceArray<float> d_output(values, 1), d_bias(columns, 1);
          const DeviceArray<std::byte> scratch(conv_bias_gradient_scratch_bytes(rows, columns));
          conv_bias_gradient_cuda(d_bias.view(), d_output.view({rows, C}), scratch.view(), device_stream());
          const Floats actual = d_bias.download();
          scratch.download();
          require_close(View<const float>(actual.data(), {columns}), expected,
                        4.0 * kEpsilon * double(rows + 4),
                        fmt::format("{} of {} columns, {} rows", columns, C, rows));
        });
}

TEST_CASE("device conv: channels are padded with zeros and cropped", "[device]") {
  struct Case {
    int64_t rows, channels, to_rows, to_channels;
  };
  for (const Case& c :
       {Case{16, 1, 16, 8}, Case{16, 3, 32, 8}, Case{32, 8, 16, 3}, Case{5, 7, 9, 2}, Case{300, 9, 300, 9}})
    for_each_schedule([&] {
      const Floats values = normal_floats(c.rows * c.channels, 8);
      const DeviceArray<float> input(values, 1), output(c.to_rows * c.to_channels, 1);
      pad_channels_cuda(output.view({c.to_rows, c.to_channels}), input.view({c.rows, c.channels}),
                        device_stream());
      const Floats actual = output.download();
      int wrong = 0;
      for (int64_t r = 0; r < c.to_rows; ++r)
        for (int64_t k = 0; k < c.to_channels; ++k)
          wrong += actual[size_t(r * c.to_channels + k)] !=
                   (r < c.rows && k < c.channels ? values[size_t(r * c.channels + k)] : 0.0f);
      CHECK(wrong == 0);
    });
}

}  // namespace vqlab::testing
