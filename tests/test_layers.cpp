// Every layer's gradients against directional differences of its own forward pass.
#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/layers.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

struct LayerCase {
  const char* name;
  std::function<std::unique_ptr<Layer>(ParameterStore&)> make;
};

constexpr ConvGeometry kHalve{.kernel = 4, .stride = 2, .padding = 1}, kSame{.kernel = 3, .padding = 1};

// The layer table: every layer, in the shapes that nets use.
const std::vector<LayerCase>& layers() {
  static const std::vector<LayerCase> table = {
      {"Conv",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<Conv>(p, "c", kSame, 3, 5, Activation::none);
       }},
      {"Conv halving with ReLU",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<Conv>(p, "c", kHalve, 3, 5, Activation::relu);
       }},
      {"Conv 1x1",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<Conv>(p, "c", ConvGeometry{.kernel = 1}, 3, 2, Activation::none);
       }},
      {"ConvTranspose",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<ConvTranspose>(p, "c", kHalve, 3, 2, Activation::none);
       }},
      {"ConvTranspose with ReLU",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<ConvTranspose>(p, "c", kHalve, 3, 2, Activation::relu);
       }},
      {"BatchNorm",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<BatchNorm>(p, "n", 3, Activation::none);
       }},
      {"BatchNorm with ReLU",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<BatchNorm>(p, "n", 3, Activation::relu);
       }},
      {"Dropout",
       [](ParameterStore&) -> std::unique_ptr<Layer> { return std::make_unique<Dropout>(0.4, 5, 0); }},
      {"ReLU", [](ParameterStore&) -> std::unique_ptr<Layer> { return std::make_unique<ReLU>(); }},
      {"Residual",
       [](ParameterStore& p) -> std::unique_ptr<Layer> { return std::make_unique<Residual>(p, "r", 3, 4); }},
      {"Residual with BatchNorm",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         return std::make_unique<Residual>(p, "r", 3, 4, Precision::fp32, true);
       }},
      {"Sequential with Dropout and BatchNorm",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         auto s = std::make_unique<Sequential>();
         add_conv(*s, p, "a", "n", kSame, 3, 4, Activation::relu, Precision::fp32, true);
         s->add<Dropout>(0.3, uint64_t(5), 1u);
         s->add<Conv>(p, "b", kSame, 4, 4, Activation::relu);
         s->add<Dropout>(0.3, uint64_t(5), 2u);
         s->add<Conv>(p, "c", ConvGeometry{.kernel = 1}, 4, 2, Activation::none);
         return s;
       }},
      {"Sequential",
       [](ParameterStore& p) -> std::unique_ptr<Layer> {
         auto s = std::make_unique<Sequential>();
         s->add<Conv>(p, "a", kHalve, 3, 4, Activation::relu);
         s->add<Residual>(p, "b", 4, 3);
         s->add<Residual>(p, "c", 4, 3);
         s->add<ReLU>();
         s->add<ConvTranspose>(p, "d", kHalve, 4, 2, Activation::none);
         return s;
       }},
  };
  return table;
}

// A layer with its memory, on a batch of two 6 x 4 images of 3 channels; loss = <weights, output>.
class Rig {
 public:
  explicit Rig(const LayerCase& layer_case) : layer_(layer_case.make(parameters_)) {
    parameters_.allocate(runtime_, true);
    parameters_.initialise(1, runtime_);
    const auto plan = [&] {
      input_ = {arena_.take<float>({2, 6, 4, 3}), arena_.take<float>({2, 6, 4, 3})};
      output_ = layer_->plan(arena_, input_, Mode::training);
    };
    plan();
    arena_.allocate(runtime_);
    plan();
    x_ = normal_floats(input_.value.size(), 2);
    loss_weights_ = normal_floats(output_.value.size(), 3);
  }
  // The loss at x + h * direction of the input, weights + h * direction of the weights.
  double loss(double h, const std::vector<float>& dx, const std::vector<float>& dw) {
    const View<float> w = parameters_.weights();
    const std::vector<float> kept(w.data, w.data + w.size());
    for (int64_t i = 0; i < w.size(); ++i) w.data[i] += float(h * double(dw[size_t(i)]));
    for (size_t i = 0; i < x_.size(); ++i) input_.value.data[i] = x_[i] + float(h * double(dx[i]));
    layer_->forward(Pass(Stream{}, View<const StepState>(&step_, {1})));
    std::copy(kept.begin(), kept.end(), w.data);
    double total = 0.0;
    for (size_t i = 0; i < loss_weights_.size(); ++i)
      total += double(loss_weights_[i]) * double(output_.value.data[i]);
    return total;
  }
  void backward() {
    const std::vector<float> zero_x(x_.size()), zero_w(static_cast<size_t>(parameters_.weights().size()));
    loss(0.0, zero_x, zero_w);
    std::copy(loss_weights_.begin(), loss_weights_.end(), output_.gradient.data);
    if (output_.rectified)  // who writes the gradient undoes the ReLU
      for (int64_t i = 0; i < output_.value.size(); ++i)
        if (!(output_.value.data[i] > 0.0f)) output_.gradient.data[i] = 0.0f;
    layer_->backward(Stream{});
  }
  // Error of a directional derivative relative to the typical one: the median over several directions.
  double relative_error(bool of_weights) {
    const View<float> w = parameters_.weights();
    const std::vector<float> zero_x(x_.size()), zero_w(static_cast<size_t>(w.size()));
    std::vector<double> errors;
    double squares = 0.0;
    for (uint64_t seed = 10; seed < 19; ++seed) {
      const std::vector<float> dx = of_weights ? zero_x : normal_floats(int64_t(x_.size()), seed);
      const std::vector<float> dw = of_weights ? normal_floats(w.size(), seed) : zero_w;
      const double h = 1e-4, numeric = (loss(h, dx, dw) - loss(-h, dx, dw)) / (2 * h);
      backward();
      double analytic = 0.0;
      for (size_t i = 0; i < dx.size(); ++i) analytic += double(input_.gradient.data[i]) * double(dx[i]);
      for (size_t i = 0; i < dw.size(); ++i)
        analytic += double(parameters_.gradients().data[i]) * double(dw[i]);
      errors.push_back(std::abs(analytic - numeric));
      squares += analytic * analytic;
    }
    std::sort(errors.begin(), errors.end());
    return squares > 0.0 ? errors[4] / std::sqrt(squares / 9) : 1.0;
  }
  bool has_parameters() const { return parameters_.count() > 0; }

 private:
  Runtime runtime_{"cpu", 0};
  const StepState step_{.step = 3};
  ParameterStore parameters_;
  std::unique_ptr<Layer> layer_;
  Arena arena_{Device::cpu};
  Tensor input_, output_;
  std::vector<float> x_, loss_weights_;
};

}  // namespace

// A layer is piecewise polynomial, so a central difference is exact up to h^2 = 1e-8, up to float rounding of
// the outputs, 6e-8 * sqrt(terms) / h, below 3e-3, and up to kinks of ReLUs: a step crosses one of a few
// hundred units in one direction of ten, which the median drops. A forgotten term or a wrong index is an
// error of order 1.
TEST_CASE("layers: input gradients equal directional differences", "[unit]") {
  for (const LayerCase& layer : layers()) {
    INFO(layer.name);
    CHECK(Rig(layer).relative_error(/*of_weights=*/false) <= 5e-3);
  }
}

TEST_CASE("layers: parameter gradients equal directional differences", "[unit]") {
  for (const LayerCase& layer : layers()) {
    INFO(layer.name);
    Rig rig(layer);
    if (rig.has_parameters()) CHECK(rig.relative_error(/*of_weights=*/true) <= 5e-3);
  }
}

TEST_CASE("layers: parameters carry the names and shapes of torch", "[unit]") {
  ParameterStore p;
  const Conv conv(p, "encoder.conv1", {.kernel = 4, .stride = 2, .padding = 1}, 3, 8, Activation::relu);
  const ConvTranspose up(p, "decoder.up1", {.kernel = 4, .stride = 2, .padding = 1}, 16, 8, Activation::none);
  REQUIRE(p.parameters().size() == 4);
  CHECK(p.parameters()[0].name == "encoder.conv1.weight");
  CHECK(file_shape(p.parameters()[0]) == std::vector<int64_t>{8, 3, 4, 4});  // Conv2d: out, in, k, k
  CHECK(file_shape(p.parameters()[2]) ==
        std::vector<int64_t>{16, 8, 4, 4});  // ConvTranspose2d: in, out, k, k
  CHECK(p.parameters()[3].name == "decoder.up1.bias");
  CHECK(p.count() == 8 * 3 * 16 + 8 + 16 * 8 * 16 + 8);
}

TEST_CASE("layers: weights keep their values through the file's order", "[unit]") {
  const Parameter p{.name = "w", .shape = {2, 3, 3, 5}, .bound = 1.0f};
  const std::vector<float> memory = normal_floats(90, 1), file = to_file_order(p, memory.data());
  CHECK(file[size_t(((1 * 5 + 4) * 3 + 2) * 3 + 0)] == memory[size_t(((1 * 3 + 2) * 3 + 0) * 5 + 4)]);
  CHECK(to_memory_order(p, file.data()) == memory);
}

}  // namespace vqlab::testing
