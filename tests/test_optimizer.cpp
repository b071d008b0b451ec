#include <cmath>

#include "kernels/nn/optimizer.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {
namespace {

struct Adam {
  explicit Adam(int64_t size)
      : weights(normal_floats(size, 1)),
        moment1(std::vector<float>(size_t(size), 0.0f)),
        moment2(moment1.values()),
        gradients(normal_floats(size, 2)) {}

  AdamOp op() {
    return {.weights = weights.all(),
            .moment1 = moment1.all(),
            .moment2 = moment2.all(),
            .gradients = gradients.all(),
            .state = {&state, {1}},
            .optimizer = {&optimizer, {1}},
            .squared_norm = {&squared_norm, {1}},
            .poisoned = {&poisoned, {1}},
            .beta1 = 0.9f,
            .beta2 = 0.999f,
            .epsilon = 1e-8f,
            .clip = clip,
            .weight_decay = weight_decay,
            .decayed = {decayed.data(), {int64_t(decayed.size())}}};
  }

  Buffer weights, moment1, moment2, gradients;
  // The step's number, learning rate and powers of the betas.
  void at(int64_t step, float learning_rate, double beta1_power, double beta2_power) {
    state = {.step = step, .learning_rate = learning_rate};
    optimizer = {.updates = step + 1, .beta1_power = beta1_power, .beta2_power = beta2_power};
  }
  StepState state;
  OptimizerState optimizer;
  float squared_norm = 0.0f, clip = 0.0f, weight_decay = 0.0f;
  std::vector<uint8_t> decayed;
  int32_t poisoned = 0;
};

}  // namespace

TEST_CASE("optimizer: the gradient norm adds in the stated order", "[unit]") {
  for (const int64_t size : kSizes)
    for (const int workers : {1, 3}) {
      const WorkerCount count(workers);
      Buffer gradients(normal_floats(size, 1)), norm(1), block_sums(sum_blocks(size));
      run(GradientNormOp{norm.all(), gradients.all(), block_sums.all()}, Stream{});
      std::vector<float> squares = gradients.values();
      double sum = 0.0;
      for (float& g : squares) sum += double(g) * double(g), g *= g;
      CHECK(norm.data()[0] == literal_sum(squares));
      // At most 16 + 8 additions of positive terms, twice, and the square.
      require_close(norm.all(), {sum}, 50.0 * kEpsilon / 2.0 * sum, "squared norm");
      norm.check_guards(), block_sums.check_guards();
      gradients.data()[size / 2] = kNan;
      run(GradientNormOp{norm.all(), gradients.all(), block_sums.all()}, Stream{});
      CHECK(std::isnan(norm.data()[0]));
    }
  Buffer gradients(5000), norm(1), block_sums(1);
  REQUIRE_THROWS_AS(run(GradientNormOp{norm.all(), gradients.all(), block_sums.all()}, Stream{}), Error);
}

TEST_CASE("optimizer: the poison gate closes for each input on its own", "[unit]") {
  struct Case {
    float loss, squared_norm;
    int32_t first_bad_row, poisoned;
  };
  for (const Case& c : std::vector<Case>{{1.0f, 2.0f, -1, 0},
                                         {0.0f, 0.0f, -1, 0},
                                         {kNan, 2.0f, -1, 1},
                                         {kInf, 2.0f, -1, 1},
                                         {-kInf, 2.0f, -1, 1},
                                         {1.0f, kNan, -1, 1},
                                         {1.0f, kInf, -1, 1},
                                         {1.0f, 2.0f, 0, 1},
                                         {1.0f, 2.0f, 77, 1}}) {
    int32_t poisoned = -7;
    OptimizerState optimizer;
    const StepState state{.step = 3};
    PoisonGateOp op{.poisoned = {&poisoned, {1}},
                    .optimizer = {&optimizer, {1}},
                    .loss = {&c.loss, {1}},
                    .squared_norm = {&c.squared_norm, {1}},
                    .first_bad_row = {&c.first_bad_row, {1}},
                    .state = {&state, {1}},
                    .beta1 = 0.9,
                    .beta2 = 0.999,
                    .halt_after = 100};
    run(op, Stream{});
    CHECK(poisoned == c.poisoned);
    CHECK(optimizer.skipped == c.poisoned);
    CHECK(optimizer.updates == 1 - c.poisoned);
    op.first_bad_row = {};
    run(op, Stream{});
    CHECK(poisoned == (c.first_bad_row >= 0 ? 0 : c.poisoned));
    op.loss = {};
    REQUIRE_THROWS_AS(run(op, Stream{}), Error);
  }
}

TEST_CASE("optimizer: the poison gate counts updates and skips, and halts for good", "[unit]") {
  int32_t poisoned = -7;
  float loss = 1.0f;
  const float norm = 1.0f;
  OptimizerState optimizer;
  StepState state;
  const auto step = [&](float value) {
    loss = value;
    run(PoisonGateOp{.poisoned = {&poisoned, {1}},
                     .optimizer = {&optimizer, {1}},
                     .loss = {&loss, {1}},
                     .squared_norm = {&norm, {1}},
                     .first_bad_row = {},
                     .state = {&state, {1}},
                     .beta1 = 0.5,
                     .beta2 = 0.25,
                     .halt_after = 3},
        Stream{});
    ++state.step;
  };
  for (const float value : {1.0f, 1.0f, kNan, kNan, 1.0f}) step(value);
  CHECK(optimizer.updates == 3);
  CHECK(optimizer.skipped == 2);
  CHECK(optimizer.skipped_in_a_row == 0);
  CHECK(optimizer.beta1_power == 0.125);
  CHECK(optimizer.beta2_power == 0.015625);
  CHECK(optimizer.halted_at == -1);
  for (const float value : {kNan, kNan, kNan, 1.0f, 1.0f}) step(value);
  CHECK(optimizer.halted_at == 7);  // the third in a row
  CHECK(optimizer.skipped == 4);
  CHECK(optimizer.updates == 3);
  CHECK(poisoned == 1);
}

TEST_CASE("optimizer: Adam equals its definition in double over several steps", "[unit]") {
  for (const int64_t size : kSizes)
    for (const float clip : {0.0f, 1.0f, 1e6f}) {
      Adam adam(size);
      adam.clip = clip;
      const std::vector<float> start = adam.weights.values();
      std::vector<double> w(start.begin(), start.end()), m(w.size(), 0.0), v(w.size(), 0.0);
      double power1 = 1.0, power2 = 1.0;
      for (int step = 0; step < 5; ++step) {
        const std::vector<float> gradients = normal_floats(size, uint64_t(100 + step));
        std::copy(gradients.begin(), gradients.end(), adam.gradients.data());
        double squared_norm = 0.0;
        for (const float g : gradients) squared_norm += double(g) * double(g);
        power1 *= double(0.9f), power2 *= double(0.999f);
        adam.at(step, 0.01f, power1, power2);
        adam.squared_norm = float(squared_norm);
        run(adam.op(), Stream{});
        const double norm = std::sqrt(squared_norm),
                     scale = clip > 0.0f && norm > double(clip) ? double(clip) / norm : 1.0;
        for (size_t i = 0; i < w.size(); ++i) {
          const double g = double(gradients[i]) * scale;
          m[i] = double(0.9f) * m[i] + (1.0 - double(0.9f)) * g;
          v[i] = double(0.999f) * v[i] + (1.0 - double(0.999f)) * g * g;
          w[i] -=
              double(0.01f) * (m[i] / (1.0 - power1)) / (std::sqrt(v[i] / (1.0 - power2)) + double(1e-8f));
        }
      }
      // 1 - beta2^t is a float difference near 1e-3, so that its relative error is eps / 1e-3 / 2 = 6e-5,
      // halved by the root: 3e-5 of each of 5 steps of at most 0.01 * 3 (Adam's steps are bounded by about
      // the learning rate).
      require_close(adam.weights.all(), w, 5.0 * 0.03 * 3e-5 + 5.0 * 4.0 * kEpsilon, "weights");
      for (const Buffer* b : {&adam.weights, &adam.moment1, &adam.moment2, &adam.gradients})
        b->check_guards();
      require_close(adam.moment1.all(), m, 5.0 * 4.0 * 4.0 * kEpsilon, "moment1");
      // (1 - beta2) in float errs by 6e-5 of itself.
      for (size_t i = 0; i < v.size(); ++i)
        if (!(std::abs(double(adam.moment2.data()[i]) - v[i]) <= 1e-4 * v[i]))
          FAIL("moment2 " << i << " of " << size);
    }
}

TEST_CASE("optimizer: the first step of Adam goes against the sign of the gradient", "[unit]") {
  Adam adam(1000);
  const std::vector<float> start = adam.weights.values();
  adam.at(0, 0.5f, 0.9, 0.999);
  run(adam.op(), Stream{});
  for (size_t i = 0; i < start.size(); ++i) {
    const double step = double(adam.weights.data()[i]) - double(start[i]),
                 sign = adam.gradients.data()[i] > 0.0f ? 1.0 : -1.0;
    // Both bias corrections cancel, up to the float errors of 1 - beta and of a weight of size 4.
    if (!(std::abs(step + 0.5 * sign) <= 0.5 * 1e-4 + 4.0 * kEpsilon)) FAIL("step " << step << " at " << i);
  }
}

TEST_CASE("optimizer: Adam scales gradients down to the clip norm only above it", "[unit]") {
  // Gradients scaled by hand and clip off give the same bits as the clip.
  Adam clipped(257), scaled(257);
  clipped.squared_norm = scaled.squared_norm = 16.0f;
  clipped.clip = 1.0f;
  for (int64_t i = 0; i < 257; ++i) scaled.gradients.data()[i] *= 0.25f;
  for (Adam* adam : {&clipped, &scaled}) adam->at(3, 0.01f, 0.6, 0.99);
  Adam below(257), off(257);
  below.squared_norm = 16.0f, below.clip = 4.0f;
  for (Adam* adam : {&below, &off}) adam->at(3, 0.01f, 0.6, 0.99);
  for (Adam* adam : {&clipped, &scaled, &below, &off}) run(adam->op(), Stream{});
  CHECK(same_bits(clipped.weights.values(), scaled.weights.values()));
  CHECK(same_bits(below.weights.values(), off.weights.values()));
  CHECK(!same_bits(clipped.moment1.values(), off.moment1.values()));
}

TEST_CASE("optimizer: Adam changes nothing while poisoned", "[unit]") {
  Adam adam(1000);
  const std::vector<float> weights = adam.weights.values(), moments = adam.moment1.values();
  adam.at(0, 0.5f, 0.9, 0.999);
  adam.gradients.data()[5] = kNan;
  adam.squared_norm = kNan;
  adam.clip = 1.0f;
  adam.poisoned = 1;
  run(adam.op(), Stream{});
  CHECK(same_bits(adam.weights.values(), weights));
  CHECK(same_bits(adam.moment1.values(), moments));
  CHECK(same_bits(adam.moment2.values(), moments));
}

TEST_CASE("optimizer: weight decay shrinks the groups that it is told to, before the step", "[unit]") {
  for (const int64_t size : kSizes)
    for (const int workers : {1, 3}) {
      const WorkerCount count(workers);
      Adam decayed(size), shrunk(size);
      decayed.weight_decay = 0.125f;
      for (int64_t group = 0; group * 64 < size; ++group) decayed.decayed.push_back(uint8_t(group % 3 != 1));
      for (int64_t i = 0; i < size; ++i)
        if (i / 64 % 3 != 1) shrunk.weights.data()[i] -= 0.25f * 0.125f * shrunk.weights.data()[i];
      for (Adam* adam : {&decayed, &shrunk}) {
        adam->at(3, 0.25f, 0.6, 0.99);
        run(adam->op(), Stream{});
        adam->weights.check_guards();
      }
      CHECK(same_bits(decayed.weights.values(), shrunk.weights.values()));
      CHECK(same_bits(decayed.moment2.values(), shrunk.moment2.values()));
    }
}

TEST_CASE("optimizer: averages of the weights follow closely while young, and not while poisoned", "[unit]") {
  for (const int64_t size : kSizes)
    for (const int64_t updates : {0, 1, 7, 1000000}) {
      Buffer averages(normal_floats(size, 1)), weights(normal_floats(size, 2));
      const std::vector<float> start = averages.values();
      const OptimizerState optimizer{.updates = updates};
      int32_t poisoned = 1;
      const AverageWeightsOp op{.averages = averages.all(),
                                .weights = weights.all(),
                                .optimizer = {&optimizer, {1}},
                                .poisoned = {&poisoned, {1}},
                                .decay = 0.4f};
      run(op, Stream{});
      CHECK(same_bits(averages.values(), start));
      poisoned = 0;
      run(op, Stream{});
      const double d = std::min(double(0.4f), (1.0 + double(updates)) / (10.0 + double(updates)));
      std::vector<double> expected;
      for (size_t i = 0; i < start.size(); ++i)
        expected.push_back(d * double(start[i]) + (1.0 - d) * double(weights.data()[i]));
      // Four roundings of numbers up to 5.
      require_close(averages.all(), expected, 4.0 * 5.0 * kEpsilon / 2.0, "averages");
      averages.check_guards();
    }
}

TEST_CASE("optimizer: Adam has the same bits for any number of threads", "[unit]") {
  std::vector<float> expected;
  for (const int workers : {1, 2, 3, 5}) {
    const WorkerCount count(workers);
    Adam adam(70001);
    adam.at(1, 0.01f, 0.81, 0.998);
    run(adam.op(), Stream{});
    if (workers == 1) expected = adam.weights.values();
    CHECK(same_bits(adam.weights.values(), expected));
  }
}

TEST_CASE("optimizer: wrong operands of Adam are rejected", "[unit][bad-input]") {
  Adam adam(10);
  const auto reject = [&](auto spoil) {
    AdamOp op = adam.op();
    spoil(op);
    REQUIRE_THROWS_AS(run(op, Stream{}), Error);
  };
  reject([](auto& op) { --op.weights.dim[0]; });
  reject([](auto& op) { --op.moment1.dim[0]; });
  reject([](auto& op) { --op.moment2.dim[0]; });
  reject([](auto& op) { --op.gradients.dim[0]; });
  reject([](auto& op) { op.state = {}; });
  reject([](auto& op) { op.optimizer = {}; });
  reject([](auto& op) { op.squared_norm = {}; });
  reject([](auto& op) { op.poisoned = {}; });
  reject([](auto& op) { op.beta1 = 1.0f; });
  reject([](auto& op) { op.beta2 = kNan; });
  reject([](auto& op) { op.epsilon = 0.0f; });
  reject([](auto& op) { op.clip = -1.0f; });
  reject([](auto& op) { op.weight_decay = 0.1f; });  // of which weights?
  std::vector<uint8_t> groups(2, 1);
  reject([&](auto& op) { op.decayed = {groups.data(), {1}}; });  // by how much?
  reject([&](auto& op) { op.weight_decay = 0.1f, op.decayed = {groups.data(), {2}}; });
  reject([&](auto& op) { op.weight_decay = -0.1f, op.decayed = {groups.data(), {1}}; });
  reject([&](auto& op) { op.weight_decay = kNan; });
}

TEST_CASE("optimizer: wrong operands of the average are rejected", "[unit][bad-input]") {
  Buffer averages(10), weights(10);
  const OptimizerState optimizer;
  const int32_t poisoned = 0;
  const AverageWeightsOp op{averages.all(), weights.all(), {&optimizer, {1}}, {&poisoned, {1}}, 0.9f};
  op.check();
  const auto reject = [&](auto spoil) {
    AverageWeightsOp bad = op;
    spoil(bad);
    REQUIRE_THROWS_AS(run(bad, Stream{}), Error);
  };
  reject([](auto& bad) { --bad.averages.dim[0]; });
  reject([](auto& bad) { bad.optimizer = {}; });
  reject([](auto& bad) { bad.poisoned = {}; });
  reject([](auto& bad) { bad.decay = 1.0f; });
  reject([](auto& bad) { bad.decay = kNan; });
}

}  // namespace vqlab::testing
