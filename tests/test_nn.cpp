#include <algorithm>
#include <cmath>

#include "kernels/core/copy.hpp"
#include "kernels/nn/image_input.hpp"
#include "kernels/nn/losses.hpp"
#include "kernels/nn/pointwise.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {
namespace {

struct LossCase {
  int64_t B, H, W, C, height, width;
  ReconstructionKind kind;
  float scale;
};

const std::vector<LossCase>& loss_cases() {
  using enum ReconstructionKind;
  static const std::vector<LossCase> cases = {
      {1, 1, 1, 1, 1, 1, squared, 1.0f},     {3, 5, 7, 3, 5, 7, squared, 1.0f},
      {3, 5, 7, 3, 5, 7, absolute, 1.0f},    {2, 8, 8, 3, 5, 7, squared, 12.5f},
      {2, 8, 8, 3, 1, 8, absolute, 12.5f},   {5, 32, 32, 1, 28, 28, squared, 0.3f},
      {3, 64, 64, 3, 64, 1, absolute, 2.0f}, {3, 40, 36, 3, 33, 35, squared, 1.0f}};
  return cases;
}

struct Loss {
  explicit Loss(const LossCase& which)
      : c(which),
        reconstruction(normal_floats(c.B * c.H * c.W * c.C, 1)),
        target(normal_floats(c.B * c.H * c.W * c.C, 2)),
        d_reconstruction(c.B * c.H * c.W * c.C),
        loss(1),
        error(1),
        squared_error(c.B),
        block_sums(sum_blocks(c.B * c.H * c.W * c.C)) {}

  ReconstructionLossOp op() {
    const auto image = [&](Buffer& b) { return b.view({c.B, c.H, c.W, c.C}); };
    return {image(d_reconstruction),
            loss.all(),
            error.all(),
            squared_error.all(),
            image(reconstruction),
            image(target),
            c.height,
            c.width,
            c.C,
            c.kind,
            c.scale,
            block_sums.all()};
  }
  void run() {
    vqlab::run(op(), Stream{});
    for (const Buffer* b : {&d_reconstruction, &loss, &error, &squared_error, &block_sums}) b->check_guards();
  }
  bool counts(int64_t i) const { return i / c.C / c.W % c.H < c.height && i / c.C % c.W < c.width; }
  int64_t size() const { return c.B * c.H * c.W * c.C; }
  double counted() const { return double(c.B * c.height * c.width * c.C); }
  double difference(int64_t i) { return double(reconstruction.data()[i]) - double(target.data()[i]); }
  double term(int64_t i) {
    return !counts(i)                              ? 0.0
           : c.kind == ReconstructionKind::squared ? difference(i) * difference(i)
                                                   : std::abs(difference(i));
  }

  LossCase c;
  Buffer reconstruction, target, d_reconstruction, loss, error, squared_error, block_sums;
};

}  // namespace

TEST_CASE("nn: ReLU and its backward pass follow their definition", "[unit]") {
  for (const int64_t size : kSizes) {
    Buffer input(normal_floats(size, 1)), d_output(normal_floats(size, 2)), output(size), d_input(size);
    input.data()[0] = 0.0f;
    run(ReluOp{output.all(), input.all()}, Stream{});
    run(ReluBackwardOp{d_input.all(), d_output.all(), output.all()}, Stream{});
    for (int64_t i = 0; i < size; ++i) {
      const bool passes = input.data()[i] > 0.0f;
      if (output.data()[i] != (passes ? input.data()[i] : 0.0f)) FAIL("output " << i << " of " << size);
      if (d_input.data()[i] != (passes ? d_output.data()[i] : 0.0f)) FAIL("d_input " << i << " of " << size);
    }
    output.check_guards(), d_input.check_guards();

    // In place.
    run(ReluOp{input.all(), input.all()}, Stream{});
    CHECK(same_bits(input.values(), output.values()));
    run(ReluBackwardOp{d_output.all(), d_output.all(), output.all()}, Stream{});
    CHECK(same_bits(d_output.values(), d_input.values()));
  }
}

TEST_CASE("nn: ReLU keeps NaN and infinity at every place of a vector", "[unit]") {
  for (int64_t at = 0; at < 40; ++at) {
    Buffer input(std::vector<float>(40, -1.0f)), output(40);
    input.data()[at] = kNan;
    input.data()[(at + 1) % 40] = kInf;
    run(ReluOp{output.all(), input.all()}, Stream{});
    for (int64_t i = 0; i < 40; ++i) {
      const float value = output.data()[i];
      CHECK((i == at ? std::isnan(value) : value == (i == (at + 1) % 40 ? kInf : 0.0f)));
    }
  }
}

TEST_CASE("nn: ReLU passes a NaN gradient only where its output was positive", "[unit]") {
  Buffer d_output({kNan, kNan, 1.0f}), output({0.0f, 2.0f, kNan}), d_input(3);
  run(ReluBackwardOp{d_input.all(), d_output.all(), output.all()}, Stream{});
  CHECK(d_input.data()[0] == 0.0f);
  CHECK(std::isnan(d_input.data()[1]));
}

TEST_CASE("nn: addition may write over either operand", "[unit]") {
  for (const int64_t size : kSizes) {
    Buffer a(normal_floats(size, 1)), b(normal_floats(size, 2)), output(size);
    a.data()[size - 1] = kNan;
    run(AddOp{output.all(), a.all(), b.all()}, Stream{});
    for (int64_t i = 0; i + 1 < size; ++i)
      if (output.data()[i] != a.data()[i] + b.data()[i]) FAIL("output " << i << " of " << size);
    CHECK(std::isnan(output.data()[size - 1]));
    output.check_guards();

    Buffer a_copy(a.values());
    run(AddOp{a_copy.all(), a_copy.all(), b.all()}, Stream{});
    CHECK(same_bits(a_copy.values(), output.values()));
    run(AddOp{b.all(), a.all(), b.all()}, Stream{});
    CHECK(same_bits(b.values(), output.values()));
  }
}

TEST_CASE("nn: a sum in front of a ReLU is the sum behind its gradient", "[unit]") {
  for (const int64_t size : kSizes) {
    Buffer a(normal_floats(size, 1)), b(normal_floats(size, 2)), y(normal_floats(size, 3)), output(size);
    a.data()[size - 1] = kNan, y.data()[size / 2] = kNan;
    Buffer expected(size);
    run(AddOp{expected.all(), a.all(), b.all()}, Stream{});
    run(ReluBackwardOp{expected.all(), expected.all(), y.all()}, Stream{});
    run(AddOp{output.all(), a.all(), b.all(), y.all()}, Stream{});
    CHECK(same_bits(output.values(), expected.values()));
    output.check_guards();
    run(AddOp{b.all(), a.all(), b.all(), y.all()}, Stream{});
    CHECK(same_bits(b.values(), expected.values()));
  }
}

TEST_CASE("nn: a swap exchanges all elements", "[unit]") {
  for (const int64_t size : kSizes) {
    const std::vector<float> left = normal_floats(size, 1), right = normal_floats(size, 2);
    Buffer a(left), b(right);
    run(SwapOp{a.all(), b.all()}, Stream{});
    CHECK(same_bits(a.values(), right));
    CHECK(same_bits(b.values(), left));
    a.check_guards(), b.check_guards();
  }
}

TEST_CASE("nn: operands of different shapes are rejected", "[unit][bad-input]") {
  Buffer a(6), b(6), c(6);
  const View<float> six = a.all(), other = b.view({2, 3}), third = c.view({3, 2});
  REQUIRE_THROWS_AS(run(ReluOp{six, other}, Stream{}), Error);
  REQUIRE_THROWS_AS(run(ReluBackwardOp{six, six, other}, Stream{}), Error);
  REQUIRE_THROWS_AS(run(ReluBackwardOp{six, other, six}, Stream{}), Error);
  REQUIRE_THROWS_AS(run(AddOp{third, other, other}, Stream{}), Error);
  REQUIRE_THROWS_AS(run(AddOp{other, other, third}, Stream{}), Error);
  REQUIRE_THROWS_AS(run(AddOp{other, other, other, third}, Stream{}), Error);
  REQUIRE_THROWS_AS(run(SwapOp{six, a.view({5})}, Stream{}), Error);
}

TEST_CASE("nn: reconstruction losses equal their definition in double", "[unit]") {
  for (const LossCase& c : loss_cases()) {
    Loss loss(c);
    loss.run();
    double sum = 0.0;
    std::vector<double> gradient(size_t(loss.size()), 0.0), squared(size_t(c.B), 0.0);
    for (int64_t i = 0; i < loss.size(); ++i) {
      if (!loss.counts(i)) continue;
      const double difference = loss.difference(i), slope = c.kind == ReconstructionKind::squared
                                                                ? 2.0 * difference
                                                            : difference > 0.0 ? 1.0
                                                                               : -1.0;
      sum += loss.term(i);
      gradient[size_t(i)] = double(c.scale) * slope / loss.counted();
      squared[size_t(i / (loss.size() / c.B))] += difference * difference;
    }
    // A lane adds at most 16 terms of a block and the tree 8 times more, twice over: at most 48 roundings,
    // all of positive terms, plus a few of the term and the mean. An image has fewer blocks.
    const double relative = 60.0 * kEpsilon / 2.0, error = sum / loss.counted();
    require_close(loss.error.all(), {error}, relative * error, "error");
    require_close(loss.loss.all(), {error * double(c.scale)}, relative * error * double(c.scale), "loss");
    require_close(loss.squared_error.all(), squared,
                  relative * *std::max_element(squared.begin(), squared.end()), "squared_error");
    // Four roundings of a difference of two normal numbers, 8 at most.
    require_close(loss.op().d_reconstruction, gradient,
                  2.0 * kEpsilon * 2.0 * 8.0 * double(c.scale) / loss.counted(), "gradient");
  }
}

TEST_CASE("nn: the gradient of a reconstruction loss equals directional differences", "[unit]") {
  for (const LossCase& c : loss_cases()) {
    Loss loss(c);
    loss.run();
    const std::vector<float> direction = normal_floats(loss.size(), 9);
    const auto value = [&](double step) {
      double sum = 0.0;
      for (int64_t i = 0; i < loss.size(); ++i) {
        const double moved = loss.difference(i) + step * double(direction[size_t(i)]);
        if (loss.counts(i)) sum += c.kind == ReconstructionKind::squared ? moved * moved : std::abs(moved);
      }
      return double(c.scale) * sum / loss.counted();
    };
    double slope = 0.0, size = 0.0;
    for (int64_t i = 0; i < loss.size(); ++i) {
      const double term = double(loss.d_reconstruction.data()[i]) * double(direction[size_t(i)]);
      slope += term, size += std::abs(term);
    }
    // The square is quadratic, so the difference is exact; |x| is linear, as no element is within a step of
    // 0. The gradient is a float after 4 roundings, the value a double that the division by the step
    // magnifies.
    const double step = 1e-6;
    CHECK(std::abs((value(step) - value(-step)) / (2.0 * step) - slope) <=
          2.0 * kEpsilon * size + 1e-9 * value(0.0));
  }
}

TEST_CASE("nn: the reconstruction loss adds in the stated order", "[unit]") {
  for (const LossCase& c : loss_cases()) {
    Loss loss(c);
    loss.run();
    std::vector<float> terms;
    for (int64_t i = 0; i < loss.size(); ++i) {
      const float difference = loss.reconstruction.data()[i] - loss.target.data()[i];
      terms.push_back(!loss.counts(i)                         ? 0.0f
                      : c.kind == ReconstructionKind::squared ? difference * difference
                                                              : std::abs(difference));
    }
    CHECK(loss.error.data()[0] == literal_sum(terms) / float(loss.counted()));
    CHECK(loss.loss.data()[0] == c.scale * loss.error.data()[0]);
  }
}

TEST_CASE("nn: reconstruction losses have the same bits for any number of threads", "[unit]") {
  const LossCase c{9, 40, 36, 3, 33, 35, ReconstructionKind::squared, 1.5f};
  Loss expected(c);
  expected.run();
  for (const int workers : {1, 2, 3, 5}) {
    const WorkerCount count(workers);
    Loss loss(c);
    loss.run();
    CHECK(same_bits(loss.error.values(), expected.error.values()));
    CHECK(same_bits(loss.squared_error.values(), expected.squared_error.values()));
    CHECK(same_bits(loss.d_reconstruction.values(), expected.d_reconstruction.values()));
    ReconstructionLossOp evaluation = loss.op();
    evaluation.d_reconstruction = {};
    run(evaluation, Stream{});
    CHECK(same_bits(loss.error.values(), expected.error.values()));
  }
}

TEST_CASE("nn: NaN reaches the loss from the image and not from the padding", "[unit]") {
  for (const ReconstructionKind kind : {ReconstructionKind::squared, ReconstructionKind::absolute})
    for (const bool inside : {false, true}) {
      Loss loss({2, 8, 8, 3, 5, 7, kind, 1.0f});
      const int64_t at = loss.size() / 2 + (inside ? 0 : 7 * 3);
      loss.reconstruction.data()[at] = kNan;
      loss.run();
      CHECK(std::isnan(loss.loss.data()[0]) == inside);
      CHECK(std::isnan(loss.error.data()[0]) == inside);
      CHECK(std::isnan(loss.d_reconstruction.data()[at]) == inside);
      CHECK(!std::isnan(loss.squared_error.data()[0]));
      CHECK(std::isnan(loss.squared_error.data()[1]) == inside);
    }
}

TEST_CASE("nn: wrong operands of the reconstruction loss are rejected", "[unit][bad-input]") {
  Loss loss({2, 8, 8, 3, 5, 7, ReconstructionKind::squared, 1.0f});
  const auto reject = [&](auto spoil) {
    ReconstructionLossOp op = loss.op();
    spoil(op);
    REQUIRE_THROWS_AS(run(op, Stream{}), Error);
  };
  for (int dim = 0; dim < 4; ++dim) {
    reject([&](auto& op) { ++op.target.dim[size_t(dim)]; });
    reject([&](auto& op) { ++op.reconstruction.dim[size_t(dim)]; });
    reject([&](auto& op) { ++op.d_reconstruction.dim[size_t(dim)]; });
  }
  reject([](auto& op) { op.height = 0; });
  reject([](auto& op) { op.height = 9; });
  reject([](auto& op) { op.width = 0; });
  reject([](auto& op) { op.width = 9; });
  reject([](auto& op) { op.scale = 0.0f; });
  reject([](auto& op) { op.scale = kNan; });
  reject([](auto& op) { op.loss = {}; });
  reject([](auto& op) { op.error.dim[0] = 2; });
  reject([](auto& op) { op.squared_error.dim[0] = 1; });
  reject([](auto& op) { op.block_sums = {}; });
}

TEST_CASE("nn: every byte becomes its pixel value", "[unit]") {
  std::vector<uint8_t> bytes(256);
  for (size_t i = 0; i < 256; ++i) bytes[i] = uint8_t(i);
  Buffer output(256);
  run(ImageInputOp{.output = output.view({1, 16, 16, 1}),
                   .images = {bytes.data(), {1, 16, 16, 1}},
                   .places = {},
                   .state = {}},
      Stream{});
  std::vector<double> expected;
  for (int i = 0; i < 256; ++i) expected.push_back(i / 255.0 - 0.5);
  // Two roundings of numbers up to 1.
  require_close(output.all(), expected, kEpsilon, "pixels");
  CHECK(output.data()[0] == -0.5f);
  CHECK(output.data()[255] == 0.5f);
}

// What the image input is said to do, pixel by pixel, with the draws that it documents.
TEST_CASE("nn: image input pads and flips and shifts", "[unit]") {
  struct Case {
    int64_t B, H, W, C, OH, OW;
    bool flip;
    int64_t shift;
  };
  for (const Case& c : std::vector<Case>{{3, 5, 7, 3, 5, 7, false, 0},
                                         {3, 5, 7, 3, 8, 8, false, 0},
                                         {40, 5, 7, 1, 8, 8, true, 0},
                                         {40, 5, 7, 3, 8, 9, false, 4},
                                         {40, 28, 28, 1, 28, 28, true, 2},
                                         {40, 5, 7, 3, 6, 8, true, 2},
                                         {1, 1, 1, 1, 4, 4, true, 0}}) {
    const int64_t size = c.B * c.H * c.W * c.C;
    std::vector<uint8_t> bytes(size_t(size), 0);
    for (int64_t i = 0; i < size; ++i) bytes[size_t(i)] = uint8_t(random_bits({}, uint64_t(i)).v[0]);
    const RandomKey key{.seed = 7, .step = 3, .use = RandomUse::augment};
    StepState state;
    state.epoch = 3, state.first_index = 1000;
    Buffer output(c.B * c.OH * c.OW * c.C);
    run(ImageInputOp{.output = output.view({c.B, c.OH, c.OW, c.C}),
                     .images = {bytes.data(), {c.B, c.H, c.W, c.C}},
                     .places = {},
                     .flip = c.flip,
                     .shift = c.shift,
                     .seed = 7,
                     .state = {&state, {1}}},
        Stream{});
    output.check_guards();
    std::vector<double> expected;
    int flips = 0;
    for (int64_t b = 0; b < c.B; ++b) {
      const auto bits = random_bits(key, uint64_t(1000 + b));
      const bool flipped = c.flip && bits.v[0] >= 0x80000000u;
      const auto draw = [&](uint32_t word) {
        return int64_t(std::floor(double(word) / 4294967296.0 * double(2 * c.shift + 1))) - c.shift;
      };
      const int64_t down = draw(bits.v[1]), right = draw(bits.v[2]);
      flips += flipped;
      for (int64_t y = 0; y < c.OH; ++y)
        for (int64_t x = 0; x < c.OW; ++x) {
          const int64_t placed_x = std::min(x, c.W - 1);
          const int64_t from_y = std::clamp<int64_t>(std::min(y, c.H - 1) + down, 0, c.H - 1);
          const int64_t from_x =
              std::clamp<int64_t>((flipped ? c.W - 1 - placed_x : placed_x) + right, 0, c.W - 1);
          for (int64_t ch = 0; ch < c.C; ++ch)
            expected.push_back(bytes[size_t(((b * c.H + from_y) * c.W + from_x) * c.C + ch)] / 255.0 - 0.5);
        }
    }
    require_close(output.all(), expected, kEpsilon, "pixels");
    // 40 fair coins: fewer than 5 or more than 35 heads once in 10 million seeds.
    if (c.flip && c.B == 40) CHECK((flips >= 5 && flips <= 35));
  }
}

TEST_CASE("nn: mixup blends an image with its mirrored place, each with its own draws", "[unit]") {
  std::vector<uint8_t> bytes(size_t(5 * 6 * 7 * 3), 0);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(random_bits({}, i).v[0]);
  StepState state{.epoch = 3, .first_index = 50};
  const int64_t size = 5 * 8 * 9 * 3, image = size / 5;
  Buffer plain(size), mixed(size);
  ImageInputOp op{.output = plain.view({5, 8, 9, 3}),
                  .images = {bytes.data(), {5, 6, 7, 3}},
                  .places = {},
                  .flip = true,
                  .shift = 2,
                  .seed = 7,
                  .state = {&state, {1}}};
  run(op, Stream{});
  op.output = mixed.view({5, 8, 9, 3});
  op.mixup = true;
  run(op, Stream{});
  CHECK(same_bits(mixed.values(), plain.values()));  // mix is 1
  for (const float mix : {0.0f, 0.3f, 0.5f}) {
    state.mix = mix;
    run(op, Stream{});
    mixed.check_guards();
    std::vector<double> expected;
    for (int64_t i = 0; i < size; ++i)
      expected.push_back(double(mix) * double(plain.data()[i]) +
                         (1.0 - double(mix)) * double(plain.data()[(4 - i / image) * image + i % image]));
    require_close(mixed.all(), expected, kEpsilon, "pixels");  // four roundings of numbers up to 1/2
    op.mixup = false;
    run(op, Stream{});
    CHECK(same_bits(mixed.values(), plain.values()));
    op.mixup = true;
  }
}

TEST_CASE("nn: augmentation depends on the place in the epoch and not on the batch", "[unit]") {
  StepState state, later;
  state.epoch = 3, state.first_index = 50;
  later.epoch = 3, later.first_index = 53;
  std::vector<uint8_t> bytes(size_t(6 * 28 * 28), 0);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(i * 31 % 251);
  Buffer whole(6 * 28 * 28), second_half(3 * 28 * 28), other_epoch(6 * 28 * 28);
  ImageInputOp op{.output = whole.view({6, 28, 28, 1}),
                  .images = {bytes.data(), {6, 28, 28, 1}},
                  .places = {},
                  .flip = true,
                  .shift = 2,
                  .seed = 7,
                  .state = {&state, {1}}};
  run(op, Stream{});
  ImageInputOp half = op;
  half.output = second_half.view({3, 28, 28, 1});
  half.images = {bytes.data() + 3 * 28 * 28, {3, 28, 28, 1}};
  half.state = {&later, {1}};
  run(half, Stream{});
  CHECK(std::memcmp(second_half.data(), whole.data() + 3 * 28 * 28, size_t(3 * 28 * 28) * sizeof(float)) ==
        0);
  op.output = other_epoch.view({6, 28, 28, 1});
  state.epoch = 4;
  run(op, Stream{});
  CHECK(!same_bits(other_epoch.values(), whole.values()));
}

TEST_CASE("nn: wrong operands of the image input are rejected", "[unit][bad-input]") {
  std::vector<uint8_t> bytes(2 * 5 * 7 * 3);
  Buffer output(2 * 6 * 8 * 3);
  const ImageInputOp op{
      .output = output.view({2, 6, 8, 3}), .images = {bytes.data(), {2, 5, 7, 3}}, .places = {}, .state = {}};
  op.check();
  const auto reject = [&](auto spoil) {
    ImageInputOp bad = op;
    spoil(bad);
    REQUIRE_THROWS_AS(run(bad, Stream{}), Error);
  };
  reject([](auto& bad) { bad.output.dim[0] = 1; });
  reject([](auto& bad) { bad.output.dim[1] = 4; });
  reject([](auto& bad) { bad.output.dim[2] = 6; });
  reject([](auto& bad) { bad.output.dim[3] = 1; });
  reject([](auto& bad) { bad.output.rank = 3; });
  reject([](auto& bad) { bad.flip = true; });  // without the state of the step
  reject([](auto& bad) { bad.mixup = true; });
  reject([](auto& bad) { bad.shift = -1; });
  reject([](auto& bad) { bad.shift = 5; });
  std::vector<int32_t> places(3);
  reject([&](auto& bad) { bad.places = {places.data(), {3}}; });  // of an output of two
}

}  // namespace vqlab::testing
