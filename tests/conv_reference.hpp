// The definition of convolutions in double, and shapes to try it at.
#pragma once

#include <vector>

#include "kernels/conv/conv2d.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {

struct ConvShape {
  int64_t B, H, W, I, O;
  ConvGeometry g;

  int64_t OH() const { return g.output_side(H); }
  int64_t OW() const { return g.output_side(W); }
  int64_t input_size() const { return B * H * W * I; }
  int64_t output_size() const { return B * OH() * OW() * O; }
  int64_t weight_size() const { return I * g.kernel * g.kernel * O; }
  bool normal() const { return g.kind == ConvKind::normal; }
  std::string text() const {
    return fmt::format("{} ({}, {}, {}, {}) to {} channels, kernel {}, stride {}, padding {}",
                       normal() ? "normal" : "transposed", B, H, W, I, O, g.kernel, g.stride, g.padding);
  }
};

inline constexpr ConvGeometry normal(int64_t kernel, int64_t stride, int64_t padding) {
  return {ConvKind::normal, kernel, stride, padding};
}
inline constexpr ConvGeometry transposed(int64_t kernel, int64_t stride, int64_t padding) {
  return {ConvKind::transposed, kernel, stride, padding};
}

// Odd batches and sides, one channel at either end, sides that the stride does not divide, and the layers of
// the usual nets.
inline const std::vector<ConvShape>& conv_shapes() {
  static const std::vector<ConvShape> list = {
      {1, 5, 7, 3, 16, normal(3, 1, 1)},       {3, 5, 7, 16, 30, normal(1, 1, 0)},
      {8, 28, 28, 1, 16, normal(4, 2, 1)},     {9, 8, 8, 30, 3, normal(3, 1, 1)},
      {17, 5, 7, 1, 1, normal(3, 2, 0)},       {9, 8, 8, 16, 30, normal(4, 2, 1)},
      {3, 5, 7, 3, 1, normal(4, 1, 0)},        {8, 6, 7, 16, 16, normal(3, 2, 1)},
      {1, 8, 8, 1, 3, normal(1, 1, 0)},        {9, 5, 7, 30, 16, normal(4, 2, 0)},
      {1, 5, 7, 3, 16, transposed(3, 1, 1)},   {3, 5, 7, 16, 30, transposed(1, 1, 0)},
      {8, 14, 14, 16, 1, transposed(4, 2, 1)}, {9, 8, 8, 30, 3, transposed(3, 1, 1)},
      {17, 5, 7, 1, 1, transposed(3, 2, 0)},   {9, 4, 4, 30, 16, transposed(4, 2, 1)},
      {3, 5, 7, 3, 1, transposed(4, 1, 0)},    {8, 3, 4, 16, 16, transposed(3, 2, 1)},
      {9, 5, 7, 1, 16, transposed(4, 2, 1)},   {17, 8, 8, 16, 3, transposed(4, 2, 1)},
      {9, 7, 7, 40, 35, normal(3, 1, 1)},      {3, 4, 5, 35, 40, transposed(4, 2, 1)}};
  return list;
}

// The definition: calls term(output element, input element, weight element) for every product of the
// convolution.
template <class Term>
void for_each_product(const ConvShape& s, const Term& term) {
  const int64_t k = s.g.kernel, stride = s.g.stride, padding = s.g.padding, OH = s.OH(), OW = s.OW();
  // A transposed convolution scatters input pixel y to stride y + ky - padding; a normal one gathers from
  // there.
  const int64_t SH = s.normal() ? OH : s.H, SW = s.normal() ? OW : s.W;
  const int64_t LH = s.normal() ? s.H : OH, LW = s.normal() ? s.W : OW;
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t y = 0; y < SH; ++y)
      for (int64_t x = 0; x < SW; ++x)
        for (int64_t ky = 0; ky < k; ++ky)
          for (int64_t kx = 0; kx < k; ++kx) {
            const int64_t large_y = stride * y + ky - padding, large_x = stride * x + kx - padding;
            if (large_y < 0 || large_y >= LH || large_x < 0 || large_x >= LW) continue;
            const int64_t small = (b * SH + y) * SW + x, large = (b * LH + large_y) * LW + large_x;
            const int64_t output = s.normal() ? small : large, input = s.normal() ? large : small;
            for (int64_t o = 0; o < s.O; ++o)
              for (int64_t i = 0; i < s.I; ++i) {
                const int64_t weight =
                    s.normal() ? ((o * k + ky) * k + kx) * s.I + i : ((i * k + ky) * k + kx) * s.O + o;
                term(output * s.O + o, input * s.I + i, weight);
              }
          }
}

using Doubles = std::vector<double>;

inline Doubles widen(const std::vector<float>& values) { return Doubles(values.begin(), values.end()); }

inline double dot(const Doubles& a, const Doubles& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline Doubles reference_forward(const ConvShape& s, const Doubles& input, const Doubles& weight,
                                 const Doubles& bias) {
  Doubles output(size_t(s.output_size()), 0.0);
  for_each_product(s, [&](int64_t o, int64_t i, int64_t w) { output[o] += input[i] * weight[w]; });
  for (size_t o = 0; o < output.size() && !bias.empty(); ++o) output[o] += bias[o % size_t(s.O)];
  return output;
}

inline Doubles reference_d_input(const ConvShape& s, const Doubles& d_output, const Doubles& weight) {
  Doubles d_input(size_t(s.input_size()), 0.0);
  for_each_product(s, [&](int64_t o, int64_t i, int64_t w) { d_input[i] += d_output[o] * weight[w]; });
  return d_input;
}

inline Doubles reference_d_weight(const ConvShape& s, const Doubles& d_output, const Doubles& input) {
  Doubles d_weight(size_t(s.weight_size()), 0.0);
  for_each_product(s, [&](int64_t o, int64_t i, int64_t w) { d_weight[w] += d_output[o] * input[i]; });
  return d_weight;
}

inline Doubles reference_d_bias(const ConvShape& s, const Doubles& d_output) {
  Doubles d_bias(size_t(s.O), 0.0);
  for (size_t o = 0; o < d_output.size(); ++o) d_bias[o % size_t(s.O)] += d_output[o];
  return d_bias;
}

// A sum of `terms` products of standard normal numbers: partial sums grow to sqrt(terms), each of the
// additions errs by half an epsilon of that, and independent errors grow by sqrt(terms) again. 8 covers the
// largest of many elements; 4 more terms, the product of two tails and the bias.
inline double sum_tolerance(int64_t terms) { return 8.0 * 0.5 * kEpsilon * double(terms + 4); }

}  // namespace vqlab::testing
