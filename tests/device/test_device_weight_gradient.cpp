// The hand-written gradient of a convolution's filter against its definition, computed in double.
#include <cmath>
#include <limits>

#include "device_testing.hpp"
#include "kernels/conv/weight_gradient.hpp"

namespace vqlab::testing {
namespace {

using Floats = std::vector<float>;

// The large side has `slack` more rows and columns than the filter reaches.
struct Shape {
  int64_t batch, height, width, S, L;
  int64_t kernel, stride, padding, slack = 0;
  int64_t small_extra = 0, large_extra = 0;  // channels of the sides that the filter has not

  int64_t H() const { return (height - 1) * stride + kernel - 2 * padding + slack; }
  int64_t W() const { return (width - 1) * stride + kernel - 2 * padding + slack; }
  int64_t rows() const { return batch * height * width; }
  int64_t size() const { return S * kernel * kernel * L; }
  ConvProblem problem() const {
    return {ConvOperation::wgrad, batch,  H(),    W(),    L + large_extra, height, width,
            S + small_extra,      kernel, stride, padding};
  }
  std::string text() const { return fmt::format("{}, filter of {} x {} channels", problem().text(), S, L); }
};

// Cut into several slices of several slabs each, by every tile.
constexpr Shape kLong[] = {{128, 12, 12, 1, 1, 1, 1, 0},
                           {70, 16, 16, 16, 1, 4, 2, 1},
                           {3, 70, 16, 32, 16, 4, 2, 1},
                           {1, 33, 31, 33, 64, 5, 1, 2},
                           {68, 16, 16, 32, 32, 1, 1, 0}};

// Channels of every kind on both sides; kernel, stride, padding, images and alignment vary along.
std::vector<Shape> many_shapes() {
  constexpr int64_t kChannels[] = {1, 3, 4, 5, 8, 16, 31, 32, 33, 64};
  std::vector<Shape> shapes;
  for (const int64_t S : kChannels)
    for (const int64_t L : kChannels) {
      const auto i = int64_t(shapes.size());
      const int64_t kernel = S * L > 600 ? 1 + i % 2 : 1 + i % 5, stride = std::min(kernel, 1 + i % 3);
      Shape s{1 + 2 * (i % 2), 2 + i % 4, 2 + i % 6, S, L, kernel, stride, i % kernel, i % stride};
      while (s.H() < 1 || s.W() < 1) --s.padding;
      if (i % 4 == 3) s.small_extra = 1 + i % 5, s.large_extra = 1 + i % 7;
      shapes.push_back(s);
    }
  return shapes;
}

struct Operands {
  Floats small, large;
};

// Whole numbers from -3 to 3: their sums are the same in every order. NaN in the channels that do not count.
Operands whole_numbers(const Shape& s) {
  const auto fill = [](int64_t pixels, int64_t channels, int64_t extra, uint32_t factor) {
    Floats values;
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int64_t c = 0; c < channels + extra; ++c) {
        const uint32_t bits = (uint32_t(values.size()) + 1) * factor;
        values.push_back(c < channels ? float(int(bits >> 20) % 7 - 3) : std::nanf(""));
      }
    return values;
  };
  return {fill(s.rows(), s.S, s.small_extra, 2654435761u),
          fill(s.batch * s.H() * s.W(), s.L, s.large_extra, 2246822519u)};
}

Operands normal_numbers(const Shape& s) {
  return {normal_floats(s.rows() * (s.S + s.small_extra), 1),
          normal_floats(s.batch * s.H() * s.W() * (s.L + s.large_extra), 2)};
}

// The definition, of the products or of their magnitudes.
std::vector<double> expected_gradient(const Shape& s, const Operands& in, bool magnitudes = false) {
  std::vector<double> result(size_t(s.size()), 0.0);
  for (int64_t row = 0; row < s.rows(); ++row) {
    const int64_t image = row / (s.height * s.width), y = row / s.width % s.height, x = row % s.width;
    for (int64_t tap = 0; tap < s.kernel * s.kernel; ++tap) {
      const int64_t Y = y * s.stride + tap / s.kernel - s.padding,
                    X = x * s.stride + tap % s.kernel - s.padding;
      if (Y < 0 || X < 0 || Y >= s.H() || X >= s.W()) continue;
      const float* large = &in.large[size_t(((image * s.H() + Y) * s.W() + X) * (s.L + s.large_extra))];
      const float* small = &in.small[size_t(row * (s.S + s.small_extra))];
      for (int64_t c = 0; c < s.S; ++c)
        for (int64_t l = 0; l < s.L; ++l) {
          const double product = double(small[c]) * double(large[l]);
          result[size_t((c * s.kernel * s.kernel + tap) * s.L + l)] +=
              magnitudes ? std::abs(product) : product;
        }
    }
  }
  return result;
}

Floats gradient_on_device(const Shape& s, const Operands& in, int64_t offset) {
  const DeviceArray<float> small(in.small, offset), large(in.large, offset), d_filter(s.size(), offset);
  const ConvProblem problem = s.problem();
  const int64_t bytes = weight_gradient_scratch_bytes(problem, s.S, s.L);
  REQUIRE(bytes <= kConvWorkspaceBytes);
  const DeviceScratch scratch(bytes);
  weight_gradient_cuda(d_filter.view({s.S, s.kernel, s.kernel, s.L}), problem, large.data(), small.data(),
                       scratch.view(), device_stream());
  Floats result = d_filter.download();
  scratch.check_bands();
  return result;
}

void check_whole_numbers(const Shape& s, int64_t offset) {
  INFO(s.text() << ", offset " << offset);
  const Operands in = whole_numbers(s);
  const std::vector<double> expected = expected_gradient(s, in);
  const Floats actual = gradient_on_device(s, in, offset);
  CHECK((std::vector<double>(actual.begin(), actual.end()) == expected));
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("device weight gradient: right at every kind of shape", "[device]") {
  for_few_schedules([] {
    for (const Shape& s : many_shapes()) check_whole_numbers(s, (s.S + s.kernel) % 2);
    check_whole_numbers({1, 1, 1, 1, 1, 1, 1, 0}, 0);
    check_whole_numbers({2, 3, 3, 2, 4, 15, 7, 14, 3}, 0);  // the largest kernel, most of it outside
    check_whole_numbers({128, 1, 1, 8, 3, 3, 1, 1}, 0);     // images of one pixel
    check_whole_numbers({5, 1, 67, 4, 4, 3, 2, 0}, 0);      // images of one row
    check_whole_numbers({3, 67, 1, 4, 4, 2, 1, 0}, 1);      // images of one column
  });
}

TEST_CASE("device weight gradient: right where slices are long", "[device]") {
  for (const Shape& s : kLong) check_whole_numbers(s, 0);
}

// A sum of n terms by fmaf, in any order, is within n u sum |terms| of the exact one, u = 2^-24, to first
// order; 16 for the higher ones and the roundings of the sums of slices.
TEST_CASE("device weight gradient: errors are those of fp32 sums", "[device]") {
  for (const Shape& s : {Shape{4, 7, 7, 32, 16, 4, 2, 1}, Shape{3, 5, 6, 5, 3, 3, 1, 1, 0, 3, 1}}) {
    INFO(s.text());
    const Operands in = normal_numbers(s);
    const std::vector<double> expected = expected_gradient(s, in), magnitude = expected_gradient(s, in, true);
    const Floats actual = gradient_on_device(s, in, 0);
    const double unit = 0.5 * std::numeric_limits<float>::epsilon() * double(s.rows() + 16);
    int wrong = 0;
    for (size_t i = 0; i < expected.size(); ++i)
      wrong += !(std::abs(actual[i] - expected[i]) <= unit * magnitude[i]);
    CHECK(wrong == 0);
  }
}

TEST_CASE("device weight gradient: the same bits each time and at any alignment", "[device]") {
  for (const Shape& s : {Shape{5, 7, 7, 32, 16, 4, 2, 1}, Shape{5, 7, 7, 16, 4, 1, 1, 0},
                         Shape{3, 9, 8, 40, 8, 3, 1, 1}, Shape{9, 6, 6, 16, 1, 4, 2, 1}}) {
    INFO(s.text());
    const Operands in = normal_numbers(s);
    const Floats first = gradient_on_device(s, in, 0);
    for_each_schedule([&] {
      CHECK(same_bits(first, gradient_on_device(s, in, 0)));
      CHECK(same_bits(first, gradient_on_device(s, in, 1)));
    });
  }
}

TEST_CASE("device weight gradient: NaN reaches what it belongs to, and no more", "[device]") {
  const Shape s{3, 5, 5, 17, 4, 3, 1, 1};
  Operands in = whole_numbers(s);
  in.small[size_t(37 * s.S + 2)] = std::nanf("");
  const Floats actual = gradient_on_device(s, in, 0);
  const int64_t columns = s.size() / s.S;
  int wrong = 0;
  for (int64_t i = 0; i < s.size(); ++i) wrong += std::isnan(actual[size_t(i)]) != (i / columns == 2);
  CHECK(wrong == 0);
  in = whole_numbers(s);
  in.large[size_t(31 * s.L + 3)] = std::nanf("");  // in the middle: every tap meets it
  const Floats other = gradient_on_device(s, in, 1);
  for (int64_t i = 0; i < s.size(); ++i) wrong += std::isnan(other[size_t(i)]) != (i % s.L == 3);
  CHECK(wrong == 0);
}

// Both methods, and what `automatic` makes of it; the channels of the image padded.
TEST_CASE("device weight gradient: the op's methods agree", "[device]") {
  for (const ConvKind kind : {ConvKind::normal, ConvKind::transposed})
    for (const int64_t kernel : {1, 3, 4}) {
      const bool normal = kind == ConvKind::normal;
      const ConvGeometry g{kind, kernel, kernel == 4 ? 2 : 1, kernel == 1 ? 0 : 1};
      const int64_t image = normal ? 8 : 4;
      const Shape s{9,
                    normal ? g.output_side(image) : image,
                    normal ? g.output_side(image) : image,
                    16,
                    3,
                    kernel,
                    g.stride,
                    g.padding,
                    0,
                    0,
                    1};
      const Operands in = [&] {  // padding channels of images are zero
        Operands numbers = whole_numbers(s);
        for (float& x : numbers.large)
          if (std::isnan(x)) x = 0.0f;
        return numbers;
      }();
      const std::vector<double> expected = expected_gradient(s, in);
      const DeviceArray<float> small(in.small), large(in.large);
      const View<float> small_view = small.view({s.batch, s.height, s.width, s.S}),
                        large_view = large.view({s.batch, s.H(), s.W(), s.L + s.large_extra});
      const View<float>&input = normal ? large_view : small_view,
            &d_output = normal ? small_view : large_view;
      const int64_t O = normal ? s.S : s.L;
      const DeviceScratch scratch(conv_scratch_bytes(Device::cuda, g, input, d_output[3]));
      for (const WeightGradient method :
           {WeightGradient::cudnn, WeightGradient::split_rows, WeightGradient::automatic})
        for_few_schedules([&] {
          INFO(s.text() << ", method " << int(method));
          const DeviceArray<float> d_weight(s.size()), d_bias(O);
          run(ConvBackwardWeightOp{.d_weight = d_weight.view({s.S, kernel, kernel, s.L}),
                                   .d_bias = d_bias.view(),
                                   .d_output = d_output,
                                   .input = input,
                                   .geometry = g,
                                   .scratch = scratch.view(),
                                   .method = method},
              device_stream());
          const Floats actual = d_weight.download();
          CHECK((std::vector<double>(actual.begin(), actual.end()) == expected));
          CHECK(std::isfinite(d_bias.download()[0]));
        });
    }
}

}  // namespace vqlab::testing
