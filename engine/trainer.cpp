#include "trainer.hpp"

#include <cmath>
#include <numbers>

#include "kernels/nn/optimizer.hpp"

namespace vqlab {
namespace {

constexpr float kBeta1 = 0.9f, kBeta2 = 0.999f, kAdamEpsilon = 1e-8f;
constexpr int64_t kMaxSkippedInARow = 100;

}  // namespace

double pixel_variance(const ImageRange& images) {
  const int64_t image_bytes = images.set->height * images.set->width * images.set->channels;
  std::array<int64_t, 256> histogram{};
  const uint8_t* pixels = images.set->pixels.data();
  for (int64_t i = images.begin * image_bytes; i < images.end * image_bytes; ++i) ++histogram[pixels[i]];
  double sum = 0.0, squares = 0.0;
  const double count = double(images.count() * image_bytes);
  for (size_t v = 0; v < histogram.size(); ++v) {
    sum += double(histogram[v]) * double(v);
    squares += double(histogram[v]) * double(v * v);
  }
  return (squares / count - (sum / count) * (sum / count)) / (255.0 * 255.0);
}

Trainer::Trainer(const Config& config, const Runtime& runtime, const ImageRange& images)
    : config_(config),
      runtime_(runtime),
      images_(images),
      stream_(runtime.compute()),
      model_(config, {images.set->height, images.set->width, images.set->channels}, config.train.batch_size,
             images.count(), Mode::training),
      feeder_(runtime, config.train.batch_size, *images.set),
      variance_(pixel_variance(images)) {
  if (steps_per_epoch() == 0)
    throw Error(ErrorKind::data,
                fmt::format("{} training images are fewer than a batch of {}", images.count(),
                            config.train.batch_size),
                "lower train.batch_size or data.validation", config.data.path);
  model_.set_variance(variance_);
  model_.allocate(runtime);
  const int64_t P = model_.parameters().weights().size();
  const auto plan = [&] {
    state_ = slab_.take<StepState>({1});
    squared_norm_ = slab_.take<float>({1});
    poisoned_ = slab_.take<int32_t>({1});
    norm_block_sums_ = slab_.take<float>({sum_blocks(P)});
  };
  plan();
  slab_.allocate(runtime);
  plan();
  pinned_slab_.take<StepState>({2});
  pinned_slab_.allocate(runtime);
  staged_states_ = pinned_slab_.take<StepState>({2});
}

void Trainer::step() {
  pick_pictures();
  fill_pinned_batch();
  upload_batch();
  encode();
  quantize();
  decode();
  measure_loss();
  compute_gradients();
  update();
  record();
}

void Trainer::pick_pictures() { feeder_.pick(images_, uint64_t(config_.seed), epoch(), first_index()); }

void Trainer::fill_pinned_batch() { feeder_.fill(*images_.set); }

void Trainer::upload_batch() {
  feeder_.upload(model_.images(), stream_);
  upload_step_state();
  model_.load_images(state_, stream_);
}

void Trainer::encode() { model_.encode(stream_); }

void Trainer::quantize() {
  model_.quantize(stream_);
  model_.quantizer().collect(stream_);
}

void Trainer::decode() { model_.decode(stream_); }

void Trainer::measure_loss() { model_.measure_loss(stream_); }

void Trainer::compute_gradients() { model_.backward(stream_); }

void Trainer::update() {
  const ParameterStore& p = model_.parameters();
  run(
      GradientNormOp{
          .squared_norm = squared_norm_, .gradients = p.gradients(), .block_sums = norm_block_sums_},
      stream_);
  run(PoisonGateOp{.poisoned = poisoned_,
                   .loss = model_.loss(),
                   .squared_norm = squared_norm_,
                   .first_bad_row = model_.quantizer().initialised() ? model_.quantizer().first_bad_row()
                                                                     : View<const int32_t>()},
      stream_);
  run(AdamOp{.weights = p.weights(),
             .moment1 = p.moments1(),
             .moment2 = p.moments2(),
             .gradients = p.gradients(),
             .state = state_,
             .squared_norm = squared_norm_,
             .poisoned = poisoned_,
             .beta1 = kBeta1,
             .beta2 = kBeta2,
             .epsilon = kAdamEpsilon,
             .clip = float(config_.train.gradient_clip)},
      stream_);
  model_.quantizer().update({.runtime = runtime_, .state = state_, .poisoned = poisoned_}, stream_);
}

void Trainer::record() {
  if (read(poisoned_)) {
    if (config_.train.on_nan == "stop" || skipped_in_a_row_ + 1 >= kMaxSkippedInARow) fail_not_finite();
    ++skipped_;
    ++skipped_in_a_row_;
  } else {
    skipped_in_a_row_ = 0;
  }
  ++step_;
}

void Trainer::upload_step_state() {
  StepState& staged = staged_states_.data[step_ % staged_states_.size()];
  const double updates = double(step_ - skipped_ + 1);
  staged = {.step = step_,
            .learning_rate = float(learning_rate(step_)),
            .beta1_power = float(std::pow(double(kBeta1), updates)),
            .beta2_power = float(std::pow(double(kBeta2), updates)),
            .epoch = epoch(),
            .first_index = first_index()};
  runtime_.upload(state_.data, &staged, sizeof staged, stream_);
}

double Trainer::learning_rate(int64_t step) const {
  const double base = config_.train.learning_rate;
  if (config_.train.schedule == "constant") return base;
  const int64_t warmup = config_.train.warmup_steps;
  if (step < warmup) return base * double(step + 1) / double(warmup);
  const double progress = double(step - warmup) / double(std::max<int64_t>(1, total_steps() - warmup));
  return base * 0.5 * (1.0 + std::cos(std::numbers::pi * std::min(1.0, progress)));
}

template <class T>
T Trainer::read(const View<T>& scalar) const {
  std::remove_const_t<T> value{};
  if (!scalar) return value;
  runtime_.download(&value, scalar.data, sizeof value, stream_);
  runtime_.synchronize(stream_);
  return value;
}

StepReport Trainer::report() const {
  const Quantizer& quantizer = model_.quantizer();
  const double distance = quantizer.initialised() ? double(read(quantizer.distance())) : 0.0;
  StepReport report{.step = step_,
                    .reconstruction = double(read(model_.loss())),
                    .commitment = quantizer.commitment_loss_weight() * distance,
                    .error = double(read(model_.error())),
                    .gradient_norm = std::sqrt(double(read(squared_norm_))),
                    .learning_rate = step_ > 0 ? learning_rate(step_ - 1) : 0.0,
                    .has_codebook = quantizer.codebook_size() > 0};
  report.loss = report.reconstruction + report.commitment + quantizer.codebook_loss_weight() * distance;
  if (report.has_codebook) {
    report.health = read(quantizer.health());
    report.replaced = read(quantizer.replaced());
  }
  return report;
}

void Trainer::resume_at(int64_t step, int64_t skipped, int64_t skipped_in_a_row) {
  step_ = step;
  skipped_ = skipped;
  skipped_in_a_row_ = skipped_in_a_row;
}

std::string Trainer::first_bad_tensor() const {
  if (const int32_t row = model_.quantizer().initialised() ? read(model_.quantizer().first_bad_row()) : -1;
      row >= 0)
    return fmt::format("latent row {}", row);
  if (!std::isfinite(read(model_.loss()))) return "the reconstruction loss";
  const ParameterStore& p = model_.parameters();
  const std::vector<float> gradients = to_host(p.gradients(), runtime_);
  for (size_t id = 0; id < p.parameters().size(); ++id) {
    const int64_t begin = p.parameters()[id].offset, end = begin + p.gradient(id).size();
    for (int64_t i = begin; i < end; ++i)
      if (!std::isfinite(gradients[size_t(i)])) return "the gradient of " + p.parameters()[id].name;
  }
  return "the norm of all gradients";
}

void Trainer::fail_not_finite() const {
  throw Error(ErrorKind::failed, fmt::format("{} is not finite", first_bad_tensor()),
              "the last checkpoint is good; start a new run with a lower train.learning_rate, with "
              "train.gradient_clip = "
              "1.0, or with train.on_nan = \"skip\", which drops such steps",
              fmt::format("step {}", step_ + 1));
}

}  // namespace vqlab
