// Convolutions as the device tests compare them: shapes, operands, results.
#pragma once

#include <vector>

#include "device_testing.hpp"
#include "kernels/conv/conv2d.hpp"

namespace vqlab::testing {

using Floats = std::vector<float>;

// Channels I and O of the weight; the tensors have `input` and `output` of them.
struct Shape {
  int64_t B, H, W, I, O, input, output;
  ConvGeometry g;

  bool normal() const { return g.kind == ConvKind::normal; }
  int64_t OH() const { return g.output_side(H); }
  int64_t OW() const { return g.output_side(W); }
  int64_t area() const { return g.kernel * g.kernel; }
  std::string text() const {
    return fmt::format("{} ({}, {}, {}, {} of {}) to {} of {} channels, kernel {}, stride {}, padding {}",
                       normal() ? "normal" : "transposed", B, H, W, I, input, O, output, g.kernel, g.stride,
                       g.padding);
  }
};

constexpr ConvKind kNormal = ConvKind::normal, kTransposed = ConvKind::transposed;

// The values with zeros up to `to` channels.
inline Floats padded(const Floats& values, int64_t channels, int64_t to) {
  Floats result(values.size() / size_t(channels) * size_t(to), 0.0f);
  for (size_t i = 0; i < values.size(); ++i)
    result[i / size_t(channels) * size_t(to) + i % size_t(channels)] = values[i];
  return result;
}

// The results of the three ops on one device.
struct Results {
  Floats output, d_input, d_weight, d_bias;
};

struct Operands {
  Floats input, weight, bias, d_output;
  explicit Operands(const Shape& s)
      : input(normal_floats(s.B * s.H * s.W * s.I, 1)),
        weight(normal_floats(s.I * s.area() * s.O, 2)),
        bias(normal_floats(s.O, 3)),
        d_output(normal_floats(s.B * s.OH() * s.OW() * s.O, 4)) {}
};

template <class T>
View<T> weight_view(const Shape& s, T* data) {
  return {data, {s.normal() ? s.O : s.I, s.g.kernel, s.g.kernel, s.normal() ? s.I : s.O}};
}

}  // namespace vqlab::testing
