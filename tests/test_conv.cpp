#include <rapidcheck.h>

#include <algorithm>
#include <cmath>

#include "conv_reference.hpp"
#include "hwy/targets.h"

namespace vqlab::testing {
namespace {

using Shape = ConvShape;

// The operands of one convolution in guarded, unaligned memory, and the three ops on them.
class Layer {
 public:
  explicit Layer(const Shape& shape, bool with_bias = true, Activation activation = Activation::none)
      : s(shape),
        input(normal_floats(s.input_size(), 1)),
        weight(normal_floats(s.weight_size(), 2)),
        bias(normal_floats(with_bias ? s.O : 0, 3)),
        d_output(normal_floats(s.output_size(), 4)),
        output(s.output_size(), 1),
        d_input(s.input_size(), 1),
        d_weight(s.weight_size(), 1),
        d_bias(s.O, 1),
        activation_(activation),
        scratch_(conv_scratch_bytes(Device::cpu, s.g, input_view(), s.O), 4) {}

  View<const float> input_view() const { return {input.data(), {s.B, s.H, s.W, s.I}}; }
  template <class T>
  View<T> weight_shaped(T* data) const {
    return {data, {s.normal() ? s.O : s.I, s.g.kernel, s.g.kernel, s.normal() ? s.I : s.O}};
  }
  View<const float> weight_view() const { return weight_shaped(weight.data()); }
  View<const float> bias_view() const {
    return bias.empty() ? View<const float>() : View<const float>(bias.data(), {s.O});
  }
  View<const float> d_output_view() const { return {d_output.data(), {s.B, s.OH(), s.OW(), s.O}}; }

  ConvForwardOp forward() {
    return {output.view({s.B, s.OH(), s.OW(), s.O}),
            input_view(),
            weight_view(),
            bias_view(),
            s.g,
            activation_,
            scratch()};
  }
  ConvBackwardDataOp backward_data() {
    return {d_input.view({s.B, s.H, s.W, s.I}), d_output_view(), weight_view(), s.g, scratch()};
  }
  ConvBackwardWeightOp backward_weight() {
    return {
        weight_shaped(d_weight.data()), d_bias.view({s.O}), d_output_view(), input_view(), s.g, scratch()};
  }
  // Runs all three and checks every guard band.
  void run_all() {
    run(forward(), Stream{});
    run(backward_data(), Stream{});
    run(backward_weight(), Stream{});
    for (const Guarded<float>* buffer : {&output, &d_input, &d_weight, &d_bias}) buffer->check_guards();
    scratch_.check_guards();
  }
  // The bits of all results.
  std::vector<uint32_t> bits() {
    std::vector<uint32_t> all;
    for (Guarded<float>* buffer : {&output, &d_input, &d_weight, &d_bias}) {
      const size_t at = all.size();
      all.resize(at + size_t(buffer->size()));
      std::memcpy(all.data() + at, buffer->data(), size_t(buffer->size()) * sizeof(float));
    }
    return all;
  }

  Shape s;
  std::vector<float> input, weight, bias, d_output;
  Guarded<float> output, d_input, d_weight, d_bias;

 private:
  View<std::byte> scratch() { return scratch_.view({scratch_.size()}); }

  Activation activation_;
  Guarded<std::byte> scratch_;
};

void check_forward(Layer& layer) {
  const Shape& s = layer.s;
  Doubles expected = reference_forward(s, widen(layer.input), widen(layer.weight), widen(layer.bias));
  if (layer.forward().activation == Activation::relu)
    for (double& value : expected) value = std::max(value, 0.0);
  require_close(layer.forward().output, expected, sum_tolerance(s.I * s.g.kernel * s.g.kernel), s.text());
}

void check_gradients(Layer& layer) {
  const Shape& s = layer.s;
  const Doubles d_output = widen(layer.d_output);
  const int64_t pixels = s.normal() ? s.OH() * s.OW() : s.H * s.W;
  require_close(layer.backward_data().d_input, reference_d_input(s, d_output, widen(layer.weight)),
                sum_tolerance(s.O * s.g.kernel * s.g.kernel), s.text() + ": d_input");
  require_close(layer.backward_weight().d_weight, reference_d_weight(s, d_output, widen(layer.input)),
                sum_tolerance(s.B * pixels), s.text() + ": d_weight");
  require_close(layer.backward_weight().d_bias, reference_d_bias(s, d_output),
                sum_tolerance(s.B * s.OH() * s.OW()), s.text() + ": d_bias");
}

// a + step * direction
Doubles moved(Doubles a, double step, const Doubles& direction) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += step * direction[i];
  return a;
}

void (*const kBadGeometries[])(ConvGeometry&) = {
    [](ConvGeometry& g) { g.kernel = 0; },
    [](ConvGeometry& g) { g.kernel = 16; },
    [](ConvGeometry& g) { g.stride = 0; },
    [](ConvGeometry& g) { g.stride = g.kernel + 1; },
    [](ConvGeometry& g) { g.padding = -1; },
    [](ConvGeometry& g) { g.padding = g.kernel; },
    [](ConvGeometry& g) { g.kind = g.kind == ConvKind::normal ? ConvKind::transposed : ConvKind::normal; },
};

// Products use this instruction set while it lives.
class OneTarget {
 public:
  explicit OneTarget(int64_t target) { use(target); }
  ~OneTarget() { use(0); }

 private:
  static void use(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

// What check() says, "" if nothing.
std::string rejection(const ConvForwardOp& op) {
  try {
    op.check();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("conv: forward equals the definition in double", "[unit]") {
  for (const Shape& s : conv_shapes())
    for (const bool with_bias : {false, true})
      for (const Activation activation : {Activation::none, Activation::relu}) {
        Layer layer(s, with_bias, activation);
        run(layer.forward(), Stream{});
        check_forward(layer);
        layer.output.check_guards();
      }
}

TEST_CASE("conv: gradients equal their definition in double", "[unit]") {
  for (const Shape& s : conv_shapes()) {
    Layer layer(s);
    layer.run_all();
    check_gradients(layer);
  }
}

TEST_CASE("conv: a mask undoes the ReLU in front as the op of its own does", "[unit]") {
  for (const Shape& s : conv_shapes())
    for (const Precision precision : {Precision::fp32, Precision::bf16}) {
      INFO(s.text());
      Layer plain(s), masked(s);
      Guarded<std::byte> scratch(conv_scratch_bytes(Device::cpu, s.g, plain.input_view(), s.O, precision));
      const std::vector<float> mask = normal_floats(s.input_size(), 9);
      const auto op = [&](Layer& layer) {
        ConvBackwardDataOp data = layer.backward_data();
        data.precision = precision;
        data.scratch = scratch.view({scratch.size()});
        return data;
      };
      run(op(plain), Stream{});
      ConvBackwardDataOp with_mask = op(masked);
      with_mask.mask = {mask.data(), {s.B, s.H, s.W, s.I}};
      run(with_mask, Stream{});
      masked.d_input.check_guards();
      int64_t wrong = 0;
      for (int64_t i = 0; i < s.input_size(); ++i)
        wrong += masked.d_input.data()[i] != (mask[size_t(i)] > 0.0f ? plain.d_input.data()[i] : 0.0f);
      CHECK(wrong == 0);
      with_mask.mask.dim[0] += 1;
      CHECK_THROWS_AS(run(with_mask, Stream{}), Error);
    }
}

TEST_CASE("conv: all passes equal their definition at random shapes", "[unit]") {
  const auto property = [] {
    const auto pick = [](int64_t low, int64_t high) { return *rc::gen::inRange(low, high + 1); };
    const int64_t kernel = pick(1, 6);
    const ConvKind kind = *rc::gen::element(ConvKind::normal, ConvKind::transposed);
    const ConvGeometry geometry{kind, kernel, pick(1, kernel), pick(0, kernel - 1)};
    const Shape s{pick(1, 9), pick(1, 9), pick(1, 9), pick(1, 18), pick(1, 18), geometry};
    const auto side_exists = [&](int64_t side) {
      return s.normal() ? side + 2 * geometry.padding >= kernel : geometry.output_side(side) >= 1;
    };
    RC_PRE(side_exists(s.H) && side_exists(s.W));
    Layer layer(s);
    layer.run_all();
    check_forward(layer);
    check_gradients(layer);
  };
  CHECK(rc::check(property));
}

// A convolution is linear in its input and in its weight, so a central difference along a direction is exact
// up to rounding, at any step. This judges the reference of the gradients, by the forward reference alone.
TEST_CASE("conv: reference gradients equal directional differences", "[unit]") {
  for (const Shape& s : conv_shapes()) {
    INFO(s.text());
    const Doubles x = widen(normal_floats(s.input_size(), 1)), w = widen(normal_floats(s.weight_size(), 2)),
                  d_output = widen(normal_floats(s.output_size(), 3)),
                  dx = widen(normal_floats(s.input_size(), 4)), dw = widen(normal_floats(s.weight_size(), 5));
    const auto loss = [&](const Doubles& input, const Doubles& weight) {
      return dot(d_output, reference_forward(s, input, weight, {}));
    };
    // Each loss adds output_size * I * kernel^2 products of three normal numbers.
    const double tolerance = 1e-15 * double(s.output_size() * s.I * s.g.kernel * s.g.kernel);
    const double along_x = (loss(moved(x, 1.0, dx), w) - loss(moved(x, -1.0, dx), w)) / 2.0;
    CHECK(std::abs(along_x - dot(reference_d_input(s, d_output, w), dx)) <= tolerance);
    const double along_w = (loss(x, moved(w, 1.0, dw)) - loss(x, moved(w, -1.0, dw))) / 2.0;
    CHECK(std::abs(along_w - dot(reference_d_weight(s, d_output, x), dw)) <= tolerance);
  }
}

TEST_CASE("conv: backward data is the adjoint of forward", "[unit]") {
  for (const Shape& s : conv_shapes()) {
    INFO(s.text());
    Layer layer(s, false);
    layer.run_all();
    const Doubles output(layer.output.data(), layer.output.data() + s.output_size()),
        d_input(layer.d_input.data(), layer.d_input.data() + s.input_size());
    // Each side adds terms with independent errors of sum_tolerance at most.
    const double terms = double(std::max(s.output_size(), s.input_size()));
    CHECK(std::abs(dot(output, widen(layer.d_output)) - dot(widen(layer.input), d_input)) <=
          2.0 * std::sqrt(terms) * sum_tolerance(std::max(s.I, s.O) * s.g.kernel * s.g.kernel));
  }
}

TEST_CASE("conv: results have the same bits for any number of threads", "[unit]") {
  for (const Shape& s : conv_shapes()) {
    INFO(s.text());
    std::vector<uint32_t> expected;
    for (const int workers : {1, 2, 3, 5}) {
      const WorkerCount count(workers);
      Layer layer(s);
      layer.run_all();
      if (workers == 1) expected = layer.bits();
      CHECK((layer.bits() == expected));  // in brackets: Catch would print all of it
    }
  }
}

// Of those with fused multiply-adds; the others round products. What the processor has is not always
// compiled.
TEST_CASE("conv: results have the same bits on every instruction set", "[unit]") {
  for (const Shape& s : conv_shapes()) {
    INFO(s.text());
    std::vector<uint32_t> expected;
    for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
      const int64_t target = rest & -rest;
      INFO(hwy::TargetName(target));
      const OneTarget only(target);
      Layer layer(s);
      layer.run_all();
      check_forward(layer);
      check_gradients(layer);
      if ((target & (HWY_AVX3 | HWY_AVX2)) == 0) continue;
      if (expected.empty()) expected = layer.bits();
      CHECK((layer.bits() == expected));
    }
  }
}

TEST_CASE("conv: an image does not depend on the rest of its batch", "[unit]") {
  for (Shape s : conv_shapes()) {
    INFO(s.text());
    s.B = 11;
    Layer whole(s);
    whole.run_all();
    s.B = 1;
    for (const int64_t image : {0, 7, 8, 10}) {
      Layer alone(s);
      const auto take = [&](std::vector<float>& to, const std::vector<float>& from) {
        std::copy_n(from.begin() + image * int64_t(to.size()), to.size(), to.begin());
      };
      take(alone.input, whole.input);
      take(alone.d_output, whole.d_output);
      alone.run_all();
      CHECK(std::memcmp(alone.output.data(), whole.output.data() + image * s.output_size(),
                        size_t(s.output_size()) * sizeof(float)) == 0);
      CHECK(std::memcmp(alone.d_input.data(), whole.d_input.data() + image * s.input_size(),
                        size_t(s.input_size()) * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("conv: NaN in an input image passes the ReLU and stays in that image", "[unit]") {
  for (const Shape& s : conv_shapes()) {
    if (s.B == 1) continue;
    INFO(s.text());
    Layer layer(s, true, Activation::relu);
    const int64_t size = s.output_size() / s.B;
    layer.input[size_t(s.input_size() / s.B + (s.H / 2 * s.W + s.W / 2) * s.I)] = std::nanf("");
    run(layer.forward(), Stream{});
    for (int64_t i = 0; i < s.output_size(); ++i)
      if (i / size != 1 && std::isnan(layer.output.data()[i])) FAIL("NaN at " << i);
    CHECK(std::any_of(layer.output.data() + size, layer.output.data() + 2 * size,
                      [](float v) { return std::isnan(v); }));
  }
}

TEST_CASE("conv: wrong operands are rejected", "[unit][bad-input]") {
  for (const ConvGeometry& geometry : {normal(4, 2, 1), transposed(4, 2, 1)}) {
    Layer layer({9, 8, 6, 3, 5, geometry});
    const ConvForwardOp forward = layer.forward();
    const ConvBackwardDataOp data = layer.backward_data();
    const ConvBackwardWeightOp weight = layer.backward_weight();
    forward.check(), data.check(), weight.check();
    const auto reject = [](auto op, auto spoil) {
      spoil(op);
      REQUIRE_THROWS_AS(run(op, Stream{}), Error);
    };
    for (const int dim : {0, 1, 2, 3}) {
      INFO("dimension " << dim);
      reject(forward, [&](auto& op) { ++op.output.dim[dim]; });
      reject(forward, [&](auto& op) { op.input.dim[dim] += 2; });
      reject(forward, [&](auto& op) { ++op.weight.dim[dim]; });
      reject(data, [&](auto& op) { ++op.d_output.dim[dim]; });
      reject(data, [&](auto& op) { op.d_input.dim[dim] = 0; });
      reject(weight, [&](auto& op) { ++op.d_weight.dim[dim]; });
      reject(weight, [&](auto& op) { op.input.dim[dim] -= 2; });
    }
    reject(forward, [](auto& op) { ++op.bias.dim[0]; });
    reject(weight, [](auto& op) { --op.d_bias.dim[0]; });
    for (const auto& spoil : kBadGeometries) {
      reject(forward, [&](auto& op) { spoil(op.geometry); });
      reject(data, [&](auto& op) { spoil(op.geometry); });
      reject(weight, [&](auto& op) { spoil(op.geometry); });
    }
    reject(forward, [](auto& op) { op.scratch.dim[0] = 0; });
    reject(data, [](auto& op) { op.scratch.dim[0] = 0; });
    reject(weight, [](auto& op) { op.scratch.dim[0] = 0; });
  }
}

TEST_CASE("conv: images beyond 32 bit offsets are rejected", "[unit][bad-input]") {
  const View<const float> input(nullptr, {1, 20000, 20000, 1}), weight(nullptr, {1, 1, 1, 1});
  const ConvForwardOp op{.output = View<float>(nullptr, {1, 20000, 20000, 1}),
                         .input = input,
                         .weight = weight,
                         .bias = {},
                         .geometry = normal(1, 1, 0),
                         .activation = Activation::none,
                         .scratch = {}};
  REQUIRE(rejection(op).find("too large") != std::string::npos);
}

TEST_CASE("conv: an input smaller than the kernel is rejected", "[unit][bad-input]") {
  // Integer division rounds (2 - 3) / 2 up to 0, so that the formula alone would allow one output pixel.
  float numbers[9] = {};
  std::byte scratch[1];
  const ConvForwardOp op{.output = {numbers, {1, 1, 1, 1}},
                         .input = {numbers, {1, 2, 2, 1}},
                         .weight = {numbers, {1, 3, 3, 1}},
                         .bias = {},
                         .geometry = normal(3, 2, 0),
                         .activation = Activation::none,
                         .scratch = {scratch, {1}}};
  REQUIRE(rejection(op).find("does not follow") != std::string::npos);
}

}  // namespace vqlab::testing
