#include "layers.hpp"

#include <cmath>

#include "kernels/core/copy.hpp"
#include "kernels/nn/batch_norm.hpp"
#include "kernels/nn/dropout.hpp"
#include "kernels/nn/pointwise.hpp"

namespace vqlab {
namespace {

constexpr float kNormEpsilon = 1e-5f, kNormMomentum = 0.1f;

Tensor take_like(Arena& arena, const View<float>& value, bool with_gradient) {
  const auto take = [&] { return arena.take<float>({value[0], value[1], value[2], value[3]}); };
  Tensor tensor{.value = take(), .gradient = {}};
  if (with_gradient) tensor.gradient = take();
  return tensor;
}

}  // namespace

Conv::Conv(ParameterStore& parameters, const std::string& name, const ConvGeometry& geometry,
           int64_t input_channels, int64_t output_channels, Activation activation, Precision precision)
    : parameters_(parameters),
      name_(name),
      geometry_(geometry),
      output_channels_(output_channels),
      activation_(activation),
      precision_(precision) {
  const bool normal = geometry.kind == ConvKind::normal;
  const int64_t outer = normal ? output_channels : input_channels,
                inner = normal ? input_channels : output_channels;
  const float bound = 1.0f / std::sqrt(float(inner * geometry.kernel * geometry.kernel));
  weight_ = parameters.add(name + ".weight", {outer, geometry.kernel, geometry.kernel, inner}, bound);
  bias_ = parameters.add(name + ".bias", {output_channels}, bound);
}

Tensor Conv::plan(Arena& arena, const Tensor& input, Mode mode) {
  input_ = input;
  const View<float>& x = input.value;
  if (!conv_supports(geometry_, x, output_channels_))
    throw Error(ErrorKind::usage,
                fmt::format("activations {} are too large for a convolution to {} channels", x.shape(),
                            output_channels_),
                "use a smaller model.hidden, or smaller images", "model.hidden");
  const int64_t channels =
      pads_output_ ? padded_channels(arena.device(), output_channels_, precision_) : output_channels_;
  const View<float> shape(nullptr,
                          {x[0], geometry_.output_side(x[1]), geometry_.output_side(x[2]), channels});
  output_ = take_like(arena, shape, mode == Mode::training);
  output_.rectified = activation_ == Activation::relu;
  scratch_ = arena.scratch(conv_scratch_bytes(arena.device(), geometry_, x, channels, precision_));
  return output_;
}

void Conv::forward(const Pass& pass) {
  run(ConvForwardOp{.output = output_.value,
                    .input = input_.value,
                    .weight = parameters_.weight(weight_),
                    .bias = parameters_.weight(bias_),
                    .geometry = geometry_,
                    .activation = activation_,
                    .scratch = scratch_,
                    .precision = precision_,
                    .choice = &forward_choice_},
      pass.stream);
}

void Conv::backward(Stream stream) {
  run(ConvBackwardWeightOp{.d_weight = parameters_.gradient(weight_),
                           .d_bias = parameters_.gradient(bias_),
                           .d_output = output_.gradient,
                           .input = input_.value,
                           .geometry = geometry_,
                           .scratch = scratch_,
                           .precision = precision_,
                           .choice = &weight_choice_},
      stream);
  if (!input_.gradient) return;
  run(ConvBackwardDataOp{.d_input = input_.gradient,
                         .d_output = output_.gradient,
                         .weight = parameters_.weight(weight_),
                         .geometry = geometry_,
                         .scratch = scratch_,
                         .precision = precision_,
                         .choice = &backward_choice_,
                         .mask = input_.rectified ? View<const float>(input_.value) : View<const float>()},
      stream);
}

void Conv::list_convolutions(std::vector<LayerConvolution>& list) {
  const auto add = [&](ConvProblem problem, ConvFusion fusion, bool masked, ConvChoice* choice) {
    problem.precision = precision_;
    problem.fusion = fusion;
    list.push_back({name_, problem, masked, choice});
  };
  const View<const float> input = input_.value, output = output_.value;
  const ConvFusion wanted = output[3] != output_channels_     ? ConvFusion::none
                            : activation_ == Activation::relu ? ConvFusion::bias_relu
                                                              : ConvFusion::bias;
  add(forward_problem(geometry_, input, output), wanted, false, &forward_choice_);
  if (output_.gradient.rank == 0) return;
  if (input_.gradient.rank > 0)
    add(backward_data_problem(geometry_, input, output),
        input_.rectified && precision_ != Precision::bf16 ? ConvFusion::mask : ConvFusion::none,
        input_.rectified, &backward_choice_);
  add(backward_weight_problem(geometry_, input, output), ConvFusion::none, false, nullptr);
  if constexpr (kWithCuda)
    if (!prefers_split_rows(list.back().problem)) list.back().choice = &weight_choice_;
}

ConvTranspose::ConvTranspose(ParameterStore& parameters, const std::string& name, ConvGeometry geometry,
                             int64_t input_channels, int64_t output_channels, Activation activation,
                             Precision precision)
    : Conv(parameters, name, (geometry.kind = ConvKind::transposed, geometry), input_channels,
           output_channels, activation, precision) {}

BatchNorm::BatchNorm(ParameterStore& parameters, const std::string& name, int64_t channels,
                     Activation activation)
    : parameters_(parameters),
      activation_(activation),
      weight_(parameters.add_constant(name + ".weight", {channels}, 1.0f)),
      bias_(parameters.add_constant(name + ".bias", {channels}, 0.0f)),
      running_mean_(parameters.add_buffer(name + ".running_mean", channels, 0.0f)),
      running_variance_(parameters.add_buffer(name + ".running_var", channels, 1.0f)) {}

Tensor BatchNorm::plan(Arena& arena, const Tensor& input, Mode mode) {
  VQ_REQUIRE(!input.rectified, "batch norm undoes no ReLU of its input {}", input.value.shape());
  input_ = input;
  output_ = take_like(arena, input.value, mode == Mode::training);
  output_.rectified = activation_ == Activation::relu;
  if (mode == Mode::inference) return output_;
  const View<float> rows = input.value.rows();
  if (rows[0] < 2)
    throw Error(ErrorKind::usage, "batch normalisation has no variance of a batch of one pixel",
                "raise train.batch_size, or set model.norm = \"none\"", "model.norm");
  mean_ = arena.take<float>({rows[1]});
  variance_ = arena.take<float>({rows[1]});
  scratch_ = arena.scratch(batch_norm_scratch_bytes(rows[0], rows[1]));
  return output_;
}

void BatchNorm::forward(const Pass& pass) {
  if (pass.training())
    run(BatchNormOp{.output = output_.value.rows(),
                    .mean = mean_,
                    .variance = variance_,
                    .input = input_.value.rows(),
                    .scale = parameters_.weight(weight_),
                    .shift = parameters_.weight(bias_),
                    .epsilon = kNormEpsilon,
                    .activation = activation_,
                    .scratch = scratch_},
        pass.stream);
  else
    run(BatchNormInferenceOp{.output = output_.value.rows(),
                             .input = input_.value.rows(),
                             .running_mean = parameters_.buffer(running_mean_),
                             .running_variance = parameters_.buffer(running_variance_),
                             .scale = parameters_.weight(weight_),
                             .shift = parameters_.weight(bias_),
                             .epsilon = kNormEpsilon,
                             .activation = activation_},
        pass.stream);
}

void BatchNorm::backward(Stream stream) {
  run(BatchNormBackwardOp{.d_input = input_.gradient.rows(),
                          .d_scale = parameters_.gradient(weight_),
                          .d_shift = parameters_.gradient(bias_),
                          .d_output = output_.gradient.rows(),
                          .input = input_.value.rows(),
                          .mean = mean_,
                          .variance = variance_,
                          .scale = parameters_.weight(weight_),
                          .epsilon = kNormEpsilon,
                          .scratch = scratch_},
      stream);
}

void BatchNorm::update(const View<const int32_t>& poisoned, Stream stream) {
  run(BatchNormAverageOp{.running_mean = parameters_.buffer(running_mean_),
                         .running_variance = parameters_.buffer(running_variance_),
                         .mean = mean_,
                         .variance = variance_,
                         .poisoned = poisoned,
                         .rows = input_.value.rows()[0],
                         .momentum = kNormMomentum},
      stream);
}

Tensor Dropout::plan(Arena& arena, const Tensor& input, Mode mode) {
  input_ = input;
  // A ReLU in front stays undone by who writes the output's gradient: what is dropped is 0 there too.
  output_ = take_like(arena, input.value, mode == Mode::training);
  output_.rectified = input.rectified;
  return output_;
}

void Dropout::forward(const Pass& pass) {
  step_ = pass.step;
  if (pass.training())
    run(DropoutOp{.output = output_.value,
                  .input = input_.value,
                  .state = step_,
                  .probability = probability_,
                  .seed = seed_,
                  .tensor = number_},
        pass.stream);
  else
    run(CopyOp{.output = output_.value, .input = input_.value}, pass.stream);
}

void Dropout::backward(Stream stream) {
  if (!input_.gradient) return;
  run(DropoutOp{.output = input_.gradient,
                .input = output_.gradient,
                .state = step_,
                .probability = probability_,
                .seed = seed_,
                .tensor = number_},
      stream);
}

Tensor ReLU::plan(Arena&, const Tensor& input, Mode) {
  tensor_ = input;
  tensor_.rectified = true;
  return tensor_;
}

void ReLU::forward(const Pass& pass) {
  run(ReluOp{.output = tensor_.value, .input = tensor_.value}, pass.stream);
}

// The layer behind has undone the ReLU.
void ReLU::backward(Stream) {}

Tensor Sequential::plan(Arena& arena, const Tensor& input, Mode mode) {
  Tensor tensor = input;
  for (const auto& layer : layers_) tensor = layer->plan(arena, tensor, mode);
  return tensor;
}

void Sequential::forward(const Pass& pass) {
  for (const auto& layer : layers_) layer->forward(pass);
}

void Sequential::backward(Stream stream) {
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) (*layer)->backward(stream);
}

void Sequential::list_convolutions(std::vector<LayerConvolution>& list) {
  for (const auto& layer : layers_) layer->list_convolutions(list);
}

void Sequential::update(const View<const int32_t>& poisoned, Stream stream) {
  for (const auto& layer : layers_) layer->update(poisoned, stream);
}

void add_conv(Sequential& layers, ParameterStore& parameters, const std::string& name,
              const std::string& norm_name, const ConvGeometry& geometry, int64_t input_channels,
              int64_t output_channels, Activation activation, Precision precision, bool normalised) {
  layers.add<Conv>(parameters, name, geometry, input_channels, output_channels,
                   normalised ? Activation::none : activation, precision);
  if (normalised) layers.add<BatchNorm>(parameters, norm_name, output_channels, activation);
}

Residual::Residual(ParameterStore& parameters, const std::string& name, int64_t channels, int64_t hidden,
                   Precision precision, bool normalised) {
  add_conv(branch_, parameters, name + ".conv1", name + ".norm1", {.kernel = 3, .padding = 1}, channels,
           hidden, Activation::relu, precision, normalised);
  add_conv(branch_, parameters, name + ".conv2", name + ".norm2", {.kernel = 1}, hidden, channels,
           Activation::none, precision, normalised);
}

Tensor Residual::plan(Arena& arena, const Tensor& input, Mode mode) {
  input_ = input;
  activated_ = take_like(arena, input.value, mode == Mode::training);
  activated_.rectified = true;
  // The sum is written over the branch, which backward does not need; its gradient is the sum's.
  return output_ = branch_.plan(arena, activated_, mode);
}

void Residual::forward(const Pass& pass) {
  run(ReluOp{.output = activated_.value, .input = input_.value}, pass.stream);
  branch_.forward(pass);
  run(AddOp{.output = output_.value, .a = input_.value, .b = output_.value}, pass.stream);
}

void Residual::backward(Stream stream) {
  branch_.backward(stream);
  if (!input_.gradient) return;
  run(AddOp{.output = input_.gradient,
            .a = output_.gradient,
            .b = activated_.gradient,
            .rectified = input_.rectified ? input_.value : View<float>()},
      stream);
}

}  // namespace vqlab
