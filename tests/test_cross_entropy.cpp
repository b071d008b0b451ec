#include <cmath>

#include "kernels/nn/cross_entropy.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {
namespace {

struct Case {
  int64_t B, C;
  float mix, smoothing, weight;
};
const std::vector<Case> kCases = {{1, 1, 1.0f, 0.0f, 1.0f},    {1, 10, 1.0f, 0.0f, 1.0f},
                                  {7, 10, 1.0f, 0.1f, 2.0f},   {8, 10, 0.25f, 0.0f, 1.0f},
                                  {9, 33, 0.625f, 0.1f, 0.5f}, {70, 3, 0.0f, 0.9f, 1.0f},
                                  {33, 1000, 0.5f, 0.1f, 1.0f}};

struct Classes {
  explicit Classes(const Case& which)
      : c(which),
        state{.mix = which.mix},
        logits(normal_floats(c.B * c.C, 1)),
        d_logits(c.B * c.C),
        probabilities(c.B * c.C),
        loss(1),
        correct(size_t(c.B), -7),
        scratch(size_t(cross_entropy_scratch_bytes(c.B) + 7) / 8) {
    // Every fourth row is unlabelled, if there is more than one.
    for (int64_t b = 0; b < c.B; ++b)
      labels.push_back(b % 4 == 1 ? -1 : int32_t(random_bits({.seed = 5}, uint64_t(b)).v[0] % uint64_t(c.C)));
    for (int64_t i = 0; i < logits.size(); ++i) logits.data()[i] *= 3.0f;
  }
  CrossEntropyOp op() {
    return {.d_logits = d_logits.view({c.B, c.C}),
            .loss = loss.all(),
            .correct = {correct.data(), {c.B}},
            .probabilities = probabilities.view({c.B, c.C}),
            .logits = logits.view({c.B, c.C}),
            .labels = {labels.data(), {c.B}},
            .state = {&state, {1}},
            .label_smoothing = c.smoothing,
            .weight = c.weight,
            .scratch = {reinterpret_cast<std::byte*>(scratch.data()), {int64_t(scratch.size()) * 8}}};
  }
  void run() {
    vqlab::run(op(), Stream{});
    for (const Buffer* b : {&logits, &d_logits, &probabilities, &loss}) b->check_guards();
  }
  std::vector<double> values() {
    const std::vector<float> floats = logits.values();
    return {floats.begin(), floats.end()};
  }

  // The definition, in double.
  double target(int64_t b, int64_t k) const {
    const auto of = [&](int64_t row) {
      const int32_t label = labels[size_t(row)];
      if (label < 0) return 0.0;
      return (1.0 - double(c.smoothing)) * double(label == k) + double(c.smoothing) / double(c.C);
    };
    return double(c.mix) * of(b) + (1.0 - double(c.mix)) * of(c.B - 1 - b);
  }
  double exact(const std::vector<double>& at, int64_t b, int64_t k) const {  // log p
    double sum = 0.0;
    for (int64_t i = 0; i < c.C; ++i) sum += std::exp(at[size_t(b * c.C + i)]);
    return at[size_t(b * c.C + k)] - std::log(sum);
  }
  double exact_loss(const std::vector<double>& at) const {
    double sum = 0.0, targets = 0.0;
    for (int64_t b = 0; b < c.B; ++b) {
      double total = 0.0;
      for (int64_t k = 0; k < c.C; ++k) total += target(b, k);
      targets += total;
      double log_sum = 0.0;
      for (int64_t i = 0; i < c.C; ++i) log_sum += std::exp(at[size_t(b * c.C + i)]);
      log_sum = std::log(log_sum);
      for (int64_t k = 0; k < c.C; ++k) sum -= target(b, k) * (at[size_t(b * c.C + k)] - log_sum);
    }
    return targets > 0.0 ? double(c.weight) * sum / targets : 0.0;
  }

  Case c;
  StepState state;
  Buffer logits, d_logits, probabilities, loss;
  std::vector<int32_t> labels, correct;
  std::vector<double> scratch;
};

}  // namespace

TEST_CASE("cross-entropy: loss and probabilities equal their definition in double", "[unit]") {
  for (const Case& c : kCases) {
    Classes classes(c);
    classes.run();
    const std::vector<double> logits = classes.values();
    const double expected = classes.exact_loss(logits);
    // Each row's loss, its sum and the mean are rounded: at most 16 additions of positive terms here.
    require_close(classes.loss.all(), {expected}, 12.0 * kEpsilon * expected, "loss");
    std::vector<double> probabilities;
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t k = 0; k < c.C; ++k) probabilities.push_back(std::exp(classes.exact(logits, b, k)));
    require_close(classes.probabilities.all(), probabilities, kEpsilon / 2.0, "probabilities");
  }
}

TEST_CASE("cross-entropy: the gradient equals differences of the definition in double", "[unit]") {
  for (const Case& c : kCases) {
    Classes classes(c);
    classes.run();
    const std::vector<double> logits = classes.values();
    const double step = 1e-4;
    for (size_t i = 0; i < logits.size(); i += logits.size() / 97 + 1) {
      std::vector<double> above = logits, below = logits;
      above[i] += step, below[i] -= step;
      const double difference = (classes.exact_loss(above) - classes.exact_loss(below)) / (2.0 * step);
      const double gradient = classes.d_logits.data()[i];
      // The gradient is a float. The difference errs by the square of its step times a sixth of the third
      // derivative of log(sum), below 0.1, and by the rounding of a loss of a thousand sums, over the step.
      INFO(i << " of " << c.B << " x " << c.C << ": " << gradient << ", not " << difference);
      CHECK(std::abs(gradient - difference) <= 1e-9 + kEpsilon * std::abs(difference));
    }
  }
}

TEST_CASE("cross-entropy: the first of the largest logits is compared with the row's own label", "[unit]") {
  Classes classes({6, 5, 0.25f, 0.1f, 1.0f});
  const std::vector<float> rows = {1.0f, 3.0f, 3.0f,  0.0f, 3.0f,  // ties: class 1
                                   1.0f, 3.0f, 3.0f,  0.0f, 3.0f,  // ties, labelled 2
                                   9.0f, 3.0f, 3.0f,  0.0f, 3.0f,  // no label
                                   kNan, 3.0f, kInf,  0.0f, kNan,  // NaN is not the largest
                                   kNan, kNan, kNan,  kNan, kNan,  // the first
                                   0.0f, 0.0f, -kInf, 0.0f, 7.0f};
  std::copy(rows.begin(), rows.end(), classes.logits.data());
  classes.labels = {1, 2, -1, 2, 0, 4};
  classes.run();
  CHECK(classes.correct == std::vector<int32_t>{1, 0, -1, 1, 1, 1});
}

TEST_CASE("cross-entropy: rows without a label count for nothing", "[unit]") {
  Classes all({8, 10, 1.0f, 0.1f, 1.0f});
  all.labels = {1, -1, 3, -1, -1, 0, 9, -1};
  all.logits.data()[3 * 10 + 4] = kNan;  // of an unlabelled row
  all.logits.data()[4 * 10 + 4] = kInf;
  all.run();
  Classes labelled({4, 10, 1.0f, 0.1f, 1.0f});
  labelled.labels = {1, 3, 0, 9};
  for (int64_t i = 0, row = 0; i < 8; ++i)
    if (all.labels[size_t(i)] >= 0)
      std::copy_n(all.logits.data() + i * 10, 10, labelled.logits.data() + 10 * row++);
  labelled.run();
  // Four losses, added in another order.
  const double expected = labelled.loss.data()[0];
  require_close(all.loss.all(), {expected}, 4.0 * kEpsilon * expected, "loss");
  for (int64_t i = 0; i < 80; ++i)
    if (all.labels[size_t(i / 10)] < 0) CHECK(all.d_logits.data()[i] == 0.0f);

  all.labels.assign(8, -1);
  all.run();
  CHECK(all.loss.data()[0] == 0.0f);
  CHECK(same_bits(all.d_logits.values(), std::vector<float>(80, 0.0f)));
  CHECK(all.correct == std::vector<int32_t>(8, -1));
}

TEST_CASE("cross-entropy: NaN of a labelled row reaches the loss, a distant logit stays finite", "[unit]") {
  Classes classes({8, 10, 1.0f, 0.0f, 1.0f});
  classes.logits.data()[2 * 10 + 1] = 1e4f;
  classes.logits.data()[2 * 10 + 2] = -kInf;
  classes.labels[2] = 3;
  classes.run();
  CHECK(std::isfinite(classes.loss.data()[0]));
  for (const float g : classes.d_logits.values()) CHECK(std::isfinite(g));
  classes.logits.data()[6 * 10] = kNan;
  classes.run();
  CHECK(std::isnan(classes.loss.data()[0]));
}

TEST_CASE("cross-entropy: without mixup, gradient or probabilities the bits are the same", "[unit]") {
  Classes whole({9, 33, 1.0f, 0.1f, 0.5f}), bare({9, 33, 1.0f, 0.1f, 0.5f});
  whole.run();
  for (const int workers : {1, 3}) {
    const WorkerCount count(workers);
    CrossEntropyOp op = bare.op();
    op.state = {};
    run(op, Stream{});
    CHECK(same_bits(bare.d_logits.values(), whole.d_logits.values()));
    op.d_logits = {}, op.probabilities = {};
    bare.loss.data()[0] = kNan;
    run(op, Stream{});
    CHECK(same_bits(bare.loss.values(), whole.loss.values()));
    CHECK(bare.correct == whole.correct);
  }
}

TEST_CASE("cross-entropy: wrong operands are rejected", "[unit][bad-input]") {
  Classes classes({9, 10, 1.0f, 0.0f, 1.0f});
  classes.op().check();
  const auto reject = [&](auto spoil) {
    CrossEntropyOp bad = classes.op();
    spoil(bad);
    REQUIRE_THROWS_AS(run(bad, Stream{}), Error);
  };
  reject([](auto& bad) { ++bad.logits.dim[0]; });
  reject([](auto& bad) { ++bad.logits.dim[1]; });
  reject([](auto& bad) { bad.logits.rank = 3; });
  reject([](auto& bad) { --bad.d_logits.dim[1]; });
  reject([](auto& bad) { --bad.probabilities.dim[0]; });
  reject([](auto& bad) { bad.loss = {}; });
  reject([](auto& bad) { --bad.correct.dim[0]; });
  reject([](auto& bad) { --bad.labels.dim[0]; });
  reject([](auto& bad) { bad.state.dim[0] = 2; });
  reject([](auto& bad) { bad.label_smoothing = 1.0f; });
  reject([](auto& bad) { bad.label_smoothing = kNan; });
  reject([](auto& bad) { bad.weight = 0.0f; });
  reject([](auto& bad) { bad.scratch.dim[0] = 8 + 9 * 4 - 1; });
  reject([](auto& bad) { bad.scratch.data += 4, bad.scratch.dim[0] = 8 + 9 * 4; });
}

}  // namespace vqlab::testing
