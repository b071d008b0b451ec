#include <cmath>

#include "kernels/core/column_sums.hpp"
#include "kernels/nn/batch_norm.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {
namespace {

constexpr float kSmall = 1e-5f;

struct Rows {
  int64_t R, C;
};
// Below and above the widths of vectors, of column blocks and of the blocks of channels, one slice and many.
const std::vector<Rows> kRows = {{1, 1},   {2, 1},    {3, 5},     {37, 16},  {128, 64},
                                 {9, 300}, {1000, 3}, {2049, 33}, {5000, 8}, {300, 32}};

struct BatchNorm {
  BatchNorm(int64_t rows, int64_t channels, Activation how = Activation::none)
      : R(rows),
        C(channels),
        activation(how),
        input(normal_floats(R * C, 1)),
        scale(normal_floats(C, 2)),
        shift(normal_floats(C, 3)),
        d_output(normal_floats(R * C, 4)),
        output(R * C),
        mean(C),
        variance(C),
        d_input(R * C),
        d_scale(C),
        d_shift(C),
        scratch(batch_norm_scratch_bytes(R, C) / 4) {
    for (int64_t i = 0; i < R * C; ++i) input.data()[i] = 3.0f + 0.5f * input.data()[i];
  }

  View<float> rows(Buffer& b) { return b.view({R, C}); }
  View<std::byte> scratch_bytes() {
    return {reinterpret_cast<std::byte*>(scratch.data()), {scratch.size() * 4}};
  }
  BatchNormOp forward() {
    return {.output = rows(output),
            .mean = mean.all(),
            .variance = variance.all(),
            .input = rows(input),
            .scale = scale.all(),
            .shift = shift.all(),
            .epsilon = kSmall,
            .activation = activation,
            .scratch = scratch_bytes()};
  }
  BatchNormBackwardOp backward() {
    return {.d_input = rows(d_input),
            .d_scale = d_scale.all(),
            .d_shift = d_shift.all(),
            .d_output = rows(d_output),
            .input = rows(input),
            .mean = mean.all(),
            .variance = variance.all(),
            .scale = scale.all(),
            .epsilon = kSmall,
            .scratch = scratch_bytes()};
  }
  BatchNormInferenceOp inference(const View<float>& to) {
    return {.output = to,
            .input = rows(input),
            .running_mean = mean.all(),
            .running_variance = variance.all(),
            .scale = scale.all(),
            .shift = shift.all(),
            .epsilon = kSmall,
            .activation = activation};
  }
  void check_guards() const {
    for (const Buffer* b :
         {&output, &mean, &variance, &d_input, &d_scale, &d_shift, &scratch, &input, &d_output})
      b->check_guards();
  }

  int64_t R, C;
  Activation activation;
  Buffer input, scale, shift, d_output, output, mean, variance, d_input, d_scale, d_shift, scratch;
};

// In double, of input x (R, C) and the parameters of `b`, without an activation.
struct Exact {
  Exact(const BatchNorm& b, std::vector<double> x, const std::vector<double>& scale,
        const std::vector<double>& shift)
      : mean(size_t(b.C), 0.0), variance(mean), output(std::move(x)) {
    const size_t C = size_t(b.C);
    for (size_t i = 0; i < output.size(); ++i) mean[i % C] += output[i] / double(b.R);
    for (size_t i = 0; i < output.size(); ++i)
      variance[i % C] += (output[i] - mean[i % C]) * (output[i] - mean[i % C]) / double(b.R);
    for (size_t i = 0; i < output.size(); ++i)
      output[i] = (output[i] - mean[i % C]) / std::sqrt(variance[i % C] + double(kSmall)) * scale[i % C] +
                  shift[i % C];
  }
  std::vector<double> mean, variance, output;
};

std::vector<double> doubles(Buffer& b) {
  const std::vector<float> values = b.values();
  return {values.begin(), values.end()};
}

}  // namespace

TEST_CASE("batch norm: the output and the statistics equal their definition in double", "[unit]") {
  for (const auto& [R, C] : kRows)
    for (const Activation activation : {Activation::none, Activation::relu}) {
      BatchNorm b(R, C, activation);
      run(b.forward(), Stream{});
      b.check_guards();
      Exact exact(b, doubles(b.input), doubles(b.scale), doubles(b.shift));
      // At most 16 + 8 additions in a slice and as many over the slices, of terms up to 6, and a few more.
      require_close(b.mean.all(), exact.mean, 60.0 * kEpsilon * 3.0, "mean");
      require_close(b.variance.all(), exact.variance, 60.0 * kEpsilon, "variance");
      if (activation == Activation::relu)
        for (double& y : exact.output) y = std::max(y, 0.0);
      // A normalised value is below 6 and changes by the mean's error over the deviation and by half of the
      // variance's over the variance, near 1/4 or, of few rows, epsilon at the least.
      const double deviation =
          std::sqrt(*std::min_element(exact.variance.begin(), exact.variance.end()) + double(kSmall));
      require_close(b.output.all(), exact.output, 4.0 * 60.0 * kEpsilon * (1.0 + 3.0 / deviation), "output");
      if (R == 1) CHECK(b.variance.data()[0] == 0.0f);
    }
}

TEST_CASE("batch norm: a large mean does not cancel the variance", "[unit]") {
  BatchNorm b(4096, 2);
  for (int64_t i = 0; i < b.R * b.C; ++i) b.input.data()[i] = 4096.0f + (i / 2 % 2 ? 0.25f : -0.25f);
  run(b.forward(), Stream{});
  CHECK(b.mean.data()[0] == 4096.0f);
  CHECK(b.variance.data()[1] == 0.0625f);
}

TEST_CASE("batch norm: the columns are added in the stated order", "[unit]") {
  for (const auto& [R, C] : kRows) {
    BatchNorm b(R, C);
    run(b.forward(), Stream{});
    const ColumnSlices slices = column_slices(R, C);
    const auto add = [&](const std::vector<float>& values) {
      std::vector<float> lanes(size_t(column_lanes(C)), 0.0f);
      for (size_t i = 0; i < values.size(); ++i) lanes[i % lanes.size()] += values[i];
      for (; lanes.size() > 1; lanes.resize(lanes.size() / 2))
        for (size_t l = 0; l < lanes.size() / 2; ++l) lanes[l] += lanes[l + lanes.size() / 2];
      return lanes[0];
    };
    for (int64_t c = 0; c < C; ++c) {
      std::vector<float> sums;
      for (int64_t s = 0; s < slices.count; ++s) {
        std::vector<float> values;
        for (int64_t r = s * slices.rows; r < std::min(R, (s + 1) * slices.rows); ++r)
          values.push_back(b.input.data()[r * C + c]);
        sums.push_back(add(values));
      }
      if (b.mean.data()[c] != add(sums) / float(R)) FAIL("column " << c << " of " << R << " x " << C);
    }
  }
}

TEST_CASE("batch norm: the gradients equal differences of the definition in double", "[unit]") {
  for (const auto& [R, C] : kRows) {
    if (R < 3) continue;  // with two rows x^ is +-1 and d_input nearly 0
    BatchNorm b(R, C);
    run(b.forward(), Stream{});
    run(b.backward(), Stream{});
    b.check_guards();
    const std::vector<double> x = doubles(b.input), scale = doubles(b.scale), shift = doubles(b.shift);
    const auto loss = [&](const std::vector<double>& at, const std::vector<double>& s,
                          const std::vector<double>& t) {
      const Exact exact(b, at, s, t);
      double sum = 0.0;
      for (size_t i = 0; i < x.size(); ++i) sum += double(b.d_output.data()[i]) * exact.output[i];
      return sum;
    };
    const double step = 1e-5;
    const auto moved = [&](const std::vector<double>& from, const std::vector<float>& direction, double by) {
      std::vector<double> to = from;
      for (size_t i = 0; i < to.size(); ++i) to[i] += by * double(direction[i]);
      return to;
    };
    // Along single elements, and along all of them. Gradients are up to `large` after sums of about 60
    // roundings; the difference errs by the square of its step times a third derivative of the same kind,
    // and by the rounding of the loss over the step.
    const auto compare = [&](Buffer& gradient, const std::vector<double>& from, const char* what,
                             double large, const auto& value) {
      for (const size_t only : {size_t(0), from.size() / 2, from.size()}) {
        std::vector<float> direction(from.size(), 0.0f);
        if (only < from.size())
          direction[only] = 1.0f;
        else
          direction = normal_floats(int64_t(from.size()), 9);
        double slope = 0.0, size = 0.0;
        const std::vector<double> g = doubles(gradient);
        for (size_t i = 0; i < from.size(); ++i)
          slope += g[i] * double(direction[i]), size += std::abs(double(direction[i]));
        const double difference =
            (value(moved(from, direction, step)) - value(moved(from, direction, -step))) / (2.0 * step);
        INFO(what << " of " << R << " x " << C << ": " << slope << ", not " << difference);
        CHECK(std::abs(slope - difference) <= 1e-5 * large * (1.0 + size));
      }
    };
    compare(b.d_input, x, "d_input", 10.0, [&](const auto& at) { return loss(at, scale, shift); });
    compare(b.d_scale, scale, "d_scale", std::sqrt(double(R)),
            [&](const auto& at) { return loss(x, at, shift); });
    compare(b.d_shift, shift, "d_shift", std::sqrt(double(R)),
            [&](const auto& at) { return loss(x, scale, at); });
  }
}

TEST_CASE("batch norm: the gradient may overwrite that of the output, or be left out", "[unit]") {
  BatchNorm b(37, 16), in_place(37, 16), without(37, 16);
  for (BatchNorm* each : {&b, &in_place, &without}) run(each->forward(), Stream{});
  run(b.backward(), Stream{});
  BatchNormBackwardOp op = in_place.backward();
  op.d_input = in_place.rows(in_place.d_output);
  run(op, Stream{});
  CHECK(same_bits(in_place.d_output.values(), b.d_input.values()));
  op = without.backward();
  op.d_input = {};
  run(op, Stream{});
  CHECK(same_bits(without.d_scale.values(), b.d_scale.values()));
  CHECK(same_bits(without.d_shift.values(), b.d_shift.values()));
}

TEST_CASE("batch norm: inference with the statistics of the batch gives the bits of training", "[unit]") {
  for (const Activation activation : {Activation::none, Activation::relu}) {
    BatchNorm b(2049, 33, activation);
    run(b.forward(), Stream{});
    run(b.inference(b.rows(b.d_input)), Stream{});
    CHECK(same_bits(b.d_input.values(), b.output.values()));
    run(b.inference(b.rows(b.input)), Stream{});  // in place
    CHECK(same_bits(b.input.values(), b.output.values()));
  }
}

TEST_CASE("batch norm: the same bits for any number of threads", "[unit]") {
  BatchNorm expected(5000, 8, Activation::relu);
  run(expected.forward(), Stream{});
  run(expected.backward(), Stream{});
  for (const int workers : {1, 2, 3, 5}) {
    const WorkerCount count(workers);
    BatchNorm b(5000, 8, Activation::relu);
    run(b.forward(), Stream{});
    run(b.backward(), Stream{});
    CHECK(same_bits(b.output.values(), expected.output.values()));
    CHECK(same_bits(b.variance.values(), expected.variance.values()));
    CHECK(same_bits(b.d_input.values(), expected.d_input.values()));
    CHECK(same_bits(b.d_scale.values(), expected.d_scale.values()));
  }
}

TEST_CASE("batch norm: NaN stays in its channel and passes a ReLU", "[unit]") {
  BatchNorm b(100, 3, Activation::relu);
  b.input.data()[7 * 3 + 1] = kNan;
  run(b.forward(), Stream{});
  for (int64_t i = 0; i < 300; ++i)
    if (std::isnan(b.output.data()[i]) != (i % 3 == 1)) FAIL("element " << i);
}

TEST_CASE("batch norm: running statistics move by the momentum, unbiased, and not while poisoned", "[unit]") {
  Buffer running_mean({1.0f, 2.0f}), running_variance({3.0f, 4.0f}), mean({5.0f, -6.0f}),
      variance({7.0f, 8.0f});
  int32_t poisoned = 1;
  const BatchNormAverageOp op{.running_mean = running_mean.all(),
                              .running_variance = running_variance.all(),
                              .mean = mean.all(),
                              .variance = variance.all(),
                              .poisoned = {&poisoned, {1}},
                              .rows = 5,
                              .momentum = 0.25f};
  run(op, Stream{});
  CHECK(running_mean.data()[0] == 1.0f);
  CHECK(running_variance.data()[1] == 4.0f);
  poisoned = 0;
  run(op, Stream{});
  CHECK(running_mean.values() == std::vector<float>{2.0f, 0.0f});
  CHECK(running_variance.values() == std::vector<float>{0.75f * 3.0f + 0.25f * 8.75f, 3.0f + 0.25f * 10.0f});
}

TEST_CASE("batch norm: wrong operands are rejected", "[unit][bad-input]") {
  BatchNorm b(10, 4);
  const auto reject = [&](auto op, auto spoil) {
    op.check();
    spoil(op);
    REQUIRE_THROWS_AS(run(op, Stream{}), Error);
  };
  const auto shared = [&](const auto& op) {
    reject(op, [](auto& bad) { ++bad.input.dim[0]; });
    reject(op, [](auto& bad) { ++bad.input.dim[1]; });
    reject(op, [](auto& bad) { bad.input.rank = 3; });
    reject(op, [](auto& bad) { bad.scale.dim[0] = 3; });
    reject(op, [](auto& bad) { bad.epsilon = 0.0f; });
    reject(op, [](auto& bad) { bad.epsilon = kNan; });
  };
  shared(b.forward());
  shared(b.backward());
  shared(b.inference(b.rows(b.output)));
  reject(b.forward(), [](auto& bad) { bad.output.data = const_cast<float*>(bad.input.data); });
  reject(b.forward(), [](auto& bad) { bad.mean.dim[0] = 5; });
  reject(b.forward(), [](auto& bad) { bad.variance = {}; });
  reject(b.forward(), [](auto& bad) { bad.shift = {}; });
  reject(b.forward(), [](auto& bad) { --bad.scratch.dim[0]; });
  reject(b.forward(), [](auto& bad) { ++bad.scratch.data; });
  reject(b.backward(), [](auto& bad) { ++bad.d_input.dim[0]; });
  reject(b.backward(), [](auto& bad) { ++bad.d_output.dim[1]; });
  reject(b.backward(), [](auto& bad) { bad.d_scale = {}; });
  reject(b.backward(), [](auto& bad) { bad.d_shift.dim[0] = 1; });
  reject(b.backward(), [](auto& bad) { bad.mean = {}; });
  reject(b.backward(), [](auto& bad) { bad.variance = {}; });
  reject(b.backward(), [](auto& bad) { --bad.scratch.dim[0]; });
  reject(b.inference(b.rows(b.output)), [](auto& bad) { bad.running_mean = {}; });
  reject(b.inference(b.rows(b.output)), [](auto& bad) { bad.running_variance.dim[0] = 2; });
  int32_t poisoned = 0;
  const BatchNormAverageOp average{.running_mean = b.scale.all(),
                                   .running_variance = b.shift.all(),
                                   .mean = b.mean.all(),
                                   .variance = b.variance.all(),
                                   .poisoned = {&poisoned, {1}},
                                   .rows = 2,
                                   .momentum = 0.1f};
  reject(average, [](auto& bad) { bad.rows = 1; });
  reject(average, [](auto& bad) { bad.momentum = 1.5f; });
  reject(average, [](auto& bad) { bad.momentum = kNan; });
  reject(average, [](auto& bad) { bad.poisoned = {}; });
  reject(average, [](auto& bad) { bad.mean.dim[0] = 3; });
  reject(average, [](auto& bad) { bad.running_variance.dim[0] = 3; });
}

}  // namespace vqlab::testing
