// What the heads of a joint net add to one another's gradients, and what training and evaluation do
// differently.
#include <cmath>

#include "engine/model.hpp"
#include "expect_error.hpp"
#include "synthetic.hpp"

namespace vqlab::testing {
namespace {

std::vector<float> values_of(const View<const float>& view) { return {view.data, view.data + view.size()}; }

void fill(const View<float>& view, const std::vector<float>& values) {
  std::copy(values.begin(), values.end(), view.data);
}

// Median over directions of |analytic - numeric|, relative to the root mean square of the analytic
// derivative. `loss` is a function of a vector whose gradient is `gradient`.
double relative_error(const View<float>& at, const std::vector<float>& gradient, double h,
                      const std::function<double()>& loss) {
  const std::vector<float> kept = values_of(at);
  std::vector<double> errors;
  double squares = 0.0;
  for (uint64_t seed = 20; seed < 29; ++seed) {
    const std::vector<float> direction = normal_floats(at.size(), seed);
    const auto loss_at = [&](double step) {
      for (size_t i = 0; i < kept.size(); ++i) at.data[i] = kept[i] + float(step * double(direction[i]));
      return loss();
    };
    const double numeric = (loss_at(h) - loss_at(-h)) / (2.0 * h);
    double analytic = 0.0;
    for (size_t i = 0; i < kept.size(); ++i) analytic += double(gradient[i]) * double(direction[i]);
    errors.push_back(std::abs(analytic - numeric));
    squares += analytic * analytic;
  }
  fill(at, kept);
  std::sort(errors.begin(), errors.end());
  return squares > 0.0 ? errors[4] / std::sqrt(squares / 9.0) : 1.0;
}

// A head on latents (6, 2, 2, 3) of three classes, one image without a label.
class HeadRig {
 public:
  HeadRig(int64_t hidden, double dropout, bool alone)
      : head_(parameters_, config(hidden, dropout), 12, Precision::fp32) {
    parameters_.allocate(runtime_, true);
    parameters_.initialise(1, runtime_);
    const auto plan = [&] {
      latents_ = {arena_.take<float>({6, 2, 2, 3}), arena_.take<float>({6, 2, 2, 3})};
      head_.plan(arena_, latents_, Mode::training, alone);
    };
    plan();
    arena_.allocate(runtime_);
    plan();
    fill(latents_.value, normal_floats(72, 2));
    const int32_t labels[] = {0, 2, 1, -1, 1, 0};
    std::copy(std::begin(labels), std::end(labels), head_.labels().data);
  }
  double loss() {
    const Pass pass(Stream{}, View<const StepState>(&step_, {1}));
    head_.forward(pass);
    head_.measure_loss(pass);
    return double(head_.loss().data[0]);
  }
  void backward() {
    loss();
    head_.backward(Stream{});
  }
  void evaluate() {
    head_.forward(Stream{});
    head_.measure_loss(Stream{});
  }
  ParameterStore& parameters() { return parameters_; }
  const Tensor& latents() const { return latents_; }
  Classifier& head() { return head_; }
  StepState& step() { return step_; }

 private:
  static Config config(int64_t hidden, double dropout) {
    Config c;
    c.loss.classifier_weight = 1.5;
    c.classifier = {.classes = 3, .hidden = hidden, .dropout = dropout, .label_smoothing = 0.1};
    c.data.mixup = 0.3;
    return c;
  }

  Runtime runtime_{"cpu", 0};
  StepState step_{.step = 4, .mix = 0.7f};
  ParameterStore parameters_;
  Classifier head_;
  Arena arena_{Device::cpu};
  Tensor latents_;
};

}  // namespace

// The loss is a float of order 1: rounding 6e-8 / h = 2e-5, and h^2 = 1e-5 of curvature, against derivatives
// of order 1.
TEST_CASE("classifier: gradients equal directional differences", "[unit]") {
  for (const int64_t hidden : {0, 7})
    for (const double dropout : {0.0, 0.3}) {
      INFO("hidden " << hidden << ", dropout " << dropout);
      HeadRig rig(hidden, dropout, /*alone=*/true);
      rig.backward();
      const auto loss = [&] { return rig.loss(); };
      const View<float> latents(rig.latents().value.data, {72});
      const std::vector<float> d_latents = values_of(rig.latents().gradient),
                               d_weights = values_of(rig.parameters().gradients());
      CHECK(relative_error(latents, d_latents, 3e-3, loss) <= 5e-3);
      CHECK(relative_error(rig.parameters().weights(), d_weights, 3e-3, loss) <= 5e-3);
      // Without a label of its own or of its partner in mixup an image teaches nothing; here its partner has
      // one.
      rig.step().mix = 1.0f;
      rig.backward();
      for (int64_t i = 36; i < 48; ++i) CHECK(rig.latents().gradient.data[i] == 0.0f);
    }
}

TEST_CASE("classifier: beside a decoder its gradient is added", "[unit]") {
  HeadRig alone(5, 0.3, true), beside(5, 0.3, false);
  alone.backward();
  const std::vector<float> of_decoder = normal_floats(72, 9);
  fill(beside.latents().gradient, of_decoder);
  beside.backward();
  for (size_t i = 0; i < 72; ++i)
    CHECK(beside.latents().gradient.data[i] == of_decoder[i] + alone.latents().gradient.data[i]);
  CHECK(values_of(beside.parameters().gradients()) == values_of(alone.parameters().gradients()));
}

TEST_CASE("classifier: an evaluation drops, mixes and smooths nothing", "[unit]") {
  HeadRig rig(5, 0.5, true), plain(5, 0.0, true);
  rig.evaluate();
  plain.evaluate();
  CHECK(values_of(rig.head().probabilities()) == values_of(plain.head().probabilities()));
  double loss = 0.0;
  const int32_t labels[] = {0, 2, 1, -1, 1, 0};
  for (int64_t i = 0; i < 6; ++i) {
    const float* p = rig.head().probabilities().data + i * 3;
    CHECK(rig.head().correct().data[i] ==
          (labels[i] < 0 ? -1 : int32_t(std::max_element(p, p + 3) - p == labels[i])));
    if (labels[i] >= 0) loss -= std::log(double(p[labels[i]]));
  }
  // Float probabilities, each of relative error 1e-7.
  CHECK(std::abs(double(rig.head().loss().data[0]) - 1.5 * loss / 5.0) <= 1e-6);
  CHECK(std::abs(rig.loss() - 1.5 * loss / 5.0) > 1e-3);
}

namespace {

// A BatchNorm of two channels on a batch (2, 2, 1, 2), planned for training.
struct NormRig {
  Runtime runtime{"cpu", 0};
  ParameterStore parameters;
  BatchNorm norm{parameters, "n", 2, Activation::none};
  Arena arena{Device::cpu};
  Tensor input, output;
  StepState step{};
  int32_t poisoned = 0;

  NormRig() {
    parameters.allocate(runtime, true);
    parameters.initialise(0, runtime);
    const auto plan = [&] {
      input = {arena.take<float>({2, 2, 1, 2}), arena.take<float>({2, 2, 1, 2})};
      output = norm.plan(arena, input, Mode::training);
    };
    plan();
    arena.allocate(runtime);
    plan();
    fill(input.value, {1, 10, 2, 20, 3, 20, 6, 30});  // means 3 and 20, variances 3.5 and 50
  }
  void train() { norm.forward(Pass(Stream{}, View<const StepState>(&step, {1}))); }
  void update() { norm.update(View<const int32_t>(&poisoned, {1}), Stream{}); }
};

}  // namespace

TEST_CASE("layers: BatchNorm evaluates with the averages that updates alone change", "[unit]") {
  NormRig rig;
  const auto averages = [&] {
    std::vector<double> all;
    for (const size_t id : {0u, 1u})
      for (int c : {0, 1}) all.push_back(double(rig.parameters.buffer(id).data[c]));
    return all;
  };
  const std::vector<double> start = {0, 0, 1, 1};
  rig.train();
  // (1 - 3) / sqrt(3.5 + 1e-5), (30 - 20) / sqrt(50 + 1e-5)
  CHECK(std::abs(rig.output.value.data[0] + 1.0690434f) <= 1e-6f);
  CHECK(std::abs(rig.output.value.data[7] - 1.4142134f) <= 1e-6f);
  CHECK(averages() == start);
  rig.poisoned = 1;
  rig.update();
  CHECK(averages() == start);
  rig.poisoned = 0;
  rig.update();  // a tenth of the means and of the variances times 4 / 3, nine tenths of 0 and 1
  const std::vector<double> wanted = {0.3, 2.0, 0.9 + 3.5 * 4 / 30, 0.9 + 50.0 * 4 / 30}, got = averages();
  for (size_t i = 0; i < 4; ++i) CHECK(std::abs(got[i] - wanted[i]) <= 1e-6 * wanted[i]);
  rig.norm.forward(Stream{});
  CHECK(averages() == got);
  CHECK(std::abs(double(rig.output.value.data[0]) - 0.7 / std::sqrt(wanted[2] + 1e-5)) <= 1e-6);
  CHECK(std::abs(double(rig.output.value.data[7]) - 28.0 / std::sqrt(wanted[3] + 1e-5)) <= 1e-5);
}

TEST_CASE("layers: Dropout repeats its mask in a step, and passes all in an evaluation", "[unit]") {
  const Runtime runtime("cpu", 0);
  Dropout dropout(0.25, 7, 1), other(0.25, 7, 2);
  Arena arena{Device::cpu};
  Tensor input, output, second;
  const auto plan = [&] {
    input = {arena.take<float>({40, 5, 5, 10}), arena.take<float>({40, 5, 5, 10})};
    output = dropout.plan(arena, input, Mode::training);
    second = other.plan(arena, input, Mode::training);
  };
  plan();
  arena.allocate(runtime);
  plan();
  std::fill_n(input.value.data, 10000, 1.0f);
  const auto masked = [&](Dropout& layer, const Tensor& of, int64_t number) {
    const StepState step{.step = number};
    layer.forward(Pass(Stream{}, View<const StepState>(&step, {1})));
    return values_of(of.value);
  };
  const std::vector<float> first = masked(dropout, output, 3);
  CHECK(masked(dropout, output, 4) != first);
  CHECK(masked(other, second, 3) != first);
  const StepState step{.step = 3};
  dropout.forward(Pass(Stream{}, View<const StepState>(&step, {1})));
  CHECK(values_of(output.value) == first);
  double sum = 0.0;
  for (const float value : first) sum += double(value);
  CHECK(std::abs(sum / 10000.0 - 1.0) <= 5.0 * std::sqrt(0.25 / 0.75 / 10000.0));
  std::fill_n(output.gradient.data, 10000, 1.0f);
  dropout.backward(Stream{});
  CHECK(values_of(input.gradient) == first);
  dropout.forward(Stream{});
  CHECK(values_of(output.value) == std::vector<float>(10000, 1.0f));
}

TEST_CASE("parameters: weights of convolutions decay, and nothing else", "[unit]") {
  const Runtime runtime("cpu", 0);
  ParameterStore p;
  const Conv conv(p, "a", {.kernel = 3, .padding = 1}, 3, 5, Activation::none);
  const BatchNorm norm(p, "b", 70, Activation::none);
  const Conv last(p, "c", {.kernel = 1}, 70, 2, Activation::none);
  p.allocate(runtime, true);
  p.initialise(1, runtime);
  int64_t decaying = 0;
  for (const Parameter& parameter : p.parameters()) {
    int64_t size = 1;
    for (const int64_t side : parameter.shape) size *= side;
    for (int64_t i = 0; i < size; ++i)
      if (p.decayed().data[(parameter.offset + i) / kDecayGroup] != (parameter.shape.size() == 4))
        FAIL(parameter.name << " " << i);
    decaying += parameter.shape.size() == 4 ? decay_groups(size) : 0;
  }
  int64_t marked = 0;
  for (int64_t g = 0; g < p.decayed().size(); ++g) marked += p.decayed().data[g];
  CHECK(marked == decaying);
  CHECK(p.count() == 5 * 27 + 5 + 2 * 70 + 140 + 2);
}

// The whole net: both heads, batch normalisation, dropout, mixup. The losses are floats of order 1, rounded
// by 6e-8 / h = 6e-4, against derivatives of order 1; steps over kinks are dropped by the median.
TEST_CASE("model: the gradient of both losses together equals directional differences", "[unit]") {
  const Runtime runtime("cpu", 0);
  const ImageSet set = synthetic_images(8, 8, 8, 1, 3);
  for (const char* reconstruction : {"1", "0"}) {
    INFO("reconstruction_weight " << reconstruction);
    const Config config = parse_config(
        tiny_config("d"), "tiny",
        {"quantizer.kind=none", "model.norm=batch", "loss.classifier_weight=2", "classifier.classes=10",
         "classifier.hidden=12", "classifier.dropout=0.2", "data.mixup=0.4", "loss.reconstruction=mse",
         std::string("loss.reconstruction_weight=") + reconstruction});
    Model model(config, {8, 8, 1}, 8, 8, Mode::training);
    model.allocate(runtime);
    std::copy(set.pixels.begin(), set.pixels.end(), model.images().data);
    std::copy(set.labels.begin(), set.labels.end(), model.classifier()->labels().data);
    const StepState step{.step = 2, .mix = 0.8f};
    const Pass pass(Stream{}, View<const StepState>(&step, {1}));
    const auto loss = [&] {
      model.load_images(pass);
      model.encode(pass);
      model.quantize(pass);
      model.decode(pass);
      model.classify(pass);
      model.measure_loss(pass);
      return (model.has_decoder() ? double(model.loss().data[0]) : 0.0) +
             double(model.classifier()->loss().data[0]);
    };
    loss();
    model.backward(Stream{});
    const std::vector<float> gradient = values_of(model.parameters().gradients());
    CHECK(relative_error(model.parameters().weights(), gradient, 1e-4, loss) <= 3e-2);
  }
}

}  // namespace vqlab::testing
