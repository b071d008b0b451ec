#include <cmath>

#include "kernels/nn/dropout.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {
namespace {

DropoutOp dropout(const View<float>& output, const View<const float>& input, const StepState& state,
                  float probability) {
  return {.output = output,
          .input = input,
          .state = {&state, {1}},
          .probability = probability,
          .seed = 7,
          .tensor = 3};
}

}  // namespace

TEST_CASE("dropout: elements follow the documented draws", "[unit]") {
  const StepState state{.step = 11};
  const RandomKey key{.seed = 7, .step = 11, .use = RandomUse::dropout, .tensor = 3};
  for (const int64_t size : kSizes)
    for (const float probability : {0.0f, 0.1f, 0.5f, 0.999f}) {
      Buffer input(normal_floats(size, 1)), output(size);
      run(dropout(output.all(), input.all(), state, probability), Stream{});
      for (int64_t i = 0; i < size; ++i) {
        const uint32_t word = random_bits(key, uint64_t(i / 4)).v[i % 4];
        const bool kept = double(word) / 4294967296.0 >= double(probability);
        const float expected = kept ? input.data()[i] * (1.0f / (1.0f - probability)) : 0.0f;
        if (output.data()[i] != expected) FAIL("output " << i << " of " << size);
      }
      output.check_guards();
      run(dropout(input.all(), input.all(), state, probability), Stream{});  // in place
      CHECK(same_bits(input.values(), output.values()));
    }
}

TEST_CASE("dropout: the share of zeros and the mean are as said", "[unit]") {
  const StepState state{.step = 1};
  const int64_t size = 100000;
  for (const float probability : {0.1f, 0.5f, 0.75f}) {
    Buffer ones(std::vector<float>(size_t(size), 1.0f)), output(size);
    run(dropout(output.all(), ones.all(), state, probability), Stream{});
    double zeros = 0.0, sum = 0.0;
    for (const float value : output.values()) zeros += value == 0.0f, sum += double(value);
    // Five deviations of `size` coins, and of the mean, which are kept / (1 - p).
    const double p = double(probability), deviation = std::sqrt(p * (1.0 - p) / double(size));
    CHECK(std::abs(zeros / double(size) - p) <= 5.0 * deviation);
    CHECK(std::abs(sum / double(size) - 1.0) <= 5.0 * deviation / (1.0 - p) + 1e-6);
  }
}

TEST_CASE("dropout: probability 0 changes nothing; steps, layers and seeds draw their own", "[unit]") {
  StepState state{.step = 1};
  Buffer input(normal_floats(1000, 1)), output(1000), other(1000);
  run(dropout(output.all(), input.all(), state, 0.0f), Stream{});
  CHECK(same_bits(output.values(), input.values()));
  DropoutOp op = dropout(output.all(), input.all(), state, 0.5f);
  run(op, Stream{});
  const std::vector<float> first = output.values();
  const auto differs = [&](DropoutOp changed) {
    changed.output = other.all();
    run(changed, Stream{});
    return !same_bits(other.values(), first);
  };
  CHECK(!differs(op));
  op.seed = 8;
  CHECK(differs(op));
  op.seed = 7, op.tensor = 4;
  CHECK(differs(op));
  op.tensor = 3, state.step = 2;
  CHECK(differs(op));
}

TEST_CASE("dropout: the backward pass drops what the forward pass dropped", "[unit]") {
  const StepState state{.step = 5};
  Buffer input(normal_floats(1001, 1)), output(1001), d_output(normal_floats(1001, 2)), d_input(1001);
  run(dropout(output.all(), input.all(), state, 0.25f), Stream{});
  run(dropout(d_input.all(), d_output.all(), state, 0.25f), Stream{});
  // Linear in each element, so that its slope is output / input.
  for (int64_t i = 0; i < 1001; ++i) {
    const double slope = double(output.data()[i]) / double(input.data()[i]);
    if (std::abs(double(d_input.data()[i]) - slope * double(d_output.data()[i])) > 10.0 * kEpsilon)
      FAIL("element " << i);
  }
}

TEST_CASE("dropout: NaN is dropped too, and kept where it is kept", "[unit]") {
  const StepState state;
  Buffer input(std::vector<float>(100, kNan)), output(100);
  run(dropout(output.all(), input.all(), state, 0.5f), Stream{});
  int zeros = 0;
  for (const float value : output.values()) zeros += value == 0.0f;
  CHECK((zeros > 20 && zeros < 80));
}

TEST_CASE("dropout: wrong operands are rejected", "[unit][bad-input]") {
  const StepState state;
  Buffer a(6), b(6);
  const DropoutOp op = dropout(a.all(), b.all(), state, 0.5f);
  op.check();
  const auto reject = [&](auto spoil) {
    DropoutOp bad = op;
    spoil(bad);
    REQUIRE_THROWS_AS(run(bad, Stream{}), Error);
  };
  reject([](auto& bad) { bad.input.dim[0] = 5; });
  reject([](auto& bad) { bad.state = {}; });
  reject([](auto& bad) { bad.probability = 1.0f; });
  reject([](auto& bad) { bad.probability = -0.1f; });
  reject([](auto& bad) { bad.probability = kNan; });
  reject([](auto& bad) { bad.tensor = 1u << 24; });
}

}  // namespace vqlab::testing
