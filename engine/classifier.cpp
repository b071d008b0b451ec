#include "classifier.hpp"

#include "kernels/nn/cross_entropy.hpp"
#include "kernels/nn/pointwise.hpp"

namespace vqlab {

Classifier::Classifier(ParameterStore& parameters, const Config& config, int64_t features,
                       Precision precision)
    : features_(features),
      classes_(config.classifier.classes),
      label_smoothing_(float(config.classifier.label_smoothing)),
      weight_(float(config.loss.classifier_weight)),
      mixup_(config.data.mixup > 0.0) {
  const double dropout = config.classifier.dropout;
  uint32_t dropouts = 0;
  const auto add_linear = [&](const char* name, int64_t from, int64_t to, Activation activation) {
    if (dropout > 0.0) layers_.add<Dropout>(dropout, uint64_t(config.seed), dropouts++);
    layers_.add<Conv>(parameters, name, ConvGeometry{.kernel = 1}, from, to, activation, precision);
  };
  const int64_t hidden = config.classifier.hidden;
  if (hidden > 0) add_linear("classifier.linear1", features, hidden, Activation::relu);
  add_linear("classifier.linear2", hidden > 0 ? hidden : features, classes_, Activation::none);
}

void Classifier::plan(Arena& arena, const Tensor& latents, Mode mode, bool alone) {
  const int64_t B = latents.value[0];
  const auto flat = [&](const View<float>& view) { return View<float>(view.data, {B, 1, 1, features_}); };
  alone_ = alone;
  latents_ = latents;
  input_ = {.value = flat(latents.value), .gradient = {}, .rectified = latents.rectified};
  if (mode == Mode::training)
    input_.gradient = alone ? flat(latents.gradient) : arena.take<float>({B, 1, 1, features_});
  logits_ = layers_.plan(arena, input_, mode);
  labels_ = arena.take<int32_t>({B});
  correct_ = arena.take<int32_t>({B});
  probabilities_ = arena.take<float>({B, classes_});
  loss_ = arena.take<float>({1});
  scratch_ = arena.scratch(cross_entropy_scratch_bytes(B));
}

void Classifier::measure_loss(const Pass& pass) {
  run(CrossEntropyOp{.d_logits = pass.training() ? logits_.gradient.rows() : View<float>(),
                     .loss = loss_,
                     .correct = correct_,
                     .probabilities = probabilities_,
                     .logits = logits_.value.rows(),
                     .labels = labels_,
                     .state = mixup_ ? pass.step : View<const StepState>(),
                     .label_smoothing = pass.training() ? label_smoothing_ : 0.0f,
                     .weight = weight_,
                     .scratch = scratch_},
      pass.stream);
}

void Classifier::backward(Stream stream) {
  layers_.backward(stream);
  if (alone_) return;
  const View<float> gradient(latents_.gradient.data, {latents_.gradient.size()});
  run(AddOp{.output = gradient, .a = gradient, .b = View<float>(input_.gradient.data, {gradient.size()})},
      stream);
}

}  // namespace vqlab
