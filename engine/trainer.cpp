#include "trainer.hpp"

#include <cmath>
#include <numbers>
#include <span>

#include "kernels/core/elementary.hpp"
#include "kernels/nn/begin_step.hpp"

namespace vqlab {
namespace {

constexpr int64_t kMaxSkippedInARow = 100;
constexpr double kInitialDeviation = 0.1;

// From Beta(alpha, alpha), by Johnk's method: of pairs x = u^(1/alpha), y = v^(1/alpha) the first with x + y
// <= 1 gives x / (x + y). In logarithms, which small alphas need.
float draw_mix(double alpha, const RandomKey& key) {
  for (uint64_t i = 0;; ++i) {
    const double x = portable_log(double(random_uniform(key, 2 * i)) + 0x1p-25) / alpha,
                 y = portable_log(double(random_uniform(key, 2 * i + 1)) + 0x1p-25) / alpha,
                 larger = std::max(x, y);
    const double sum = larger + portable_log(portable_exp(x - larger) + portable_exp(y - larger));
    if (sum <= 0.0) return float(portable_exp(x - sum));
  }
}

}  // namespace

double pixel_variance(const ImageRange& images) {
  const int64_t image_bytes = images.set->height * images.set->width * images.set->channels;
  std::array<int64_t, 256> histogram{};
  const uint8_t* pixels = images.set->pixels.data();
  for (int64_t i = images.begin * image_bytes; i < images.end * image_bytes; ++i) ++histogram[pixels[i]];
  double sum = 0.0, squares = 0.0;
  const double count = double((images.end - images.begin) * image_bytes);
  for (size_t v = 0; v < histogram.size(); ++v) {
    sum += double(histogram[v]) * double(v);
    squares += double(histogram[v]) * double(v * v);
  }
  return (squares / count - (sum / count) * (sum / count)) / (255.0 * 255.0);
}

Trainer::Trainer(const Config& config, const Runtime& runtime, const ImageRange& images, Residency residency)
    : config_(config),
      runtime_(runtime),
      images_(images),
      stream_(runtime.compute()),
      model_(config, {images.set->height, images.set->width, images.set->channels}, config.train.batch_size,
             images.count(), Mode::training),
      variance_(pixel_variance(images)) {
  if (steps_per_epoch() == 0)
    throw Error(ErrorKind::data,
                fmt::format("{} training images are fewer than a batch of {}", images.count(),
                            config.train.batch_size),
                "lower train.batch_size or data.validation", config.data.path);
  model_.set_variance(variance_);
  model_.allocate(runtime);
  adam_.allocate(runtime, model_.parameters());
  const auto plan = [&] {
    state_ = slab_.take<StepState>({1});
    plan_ = slab_.take<StepState>({kPlannedSteps});
    ring_ = slab_.take<StepMetrics>({kMetricsRing});
    if (residency == Residency::resident) places_ = slab_.take<int32_t>({config.train.batch_size});
    for (StagedPlan& staged : staged_) staged.steps = pinned_slab_.take<StepState>({kPlannedSteps});
    host_optimizer_ = pinned_slab_.take<OptimizerState>({1});
    host_ring_ = pinned_slab_.take<StepMetrics>({kMetricsRing});
  };
  plan();
  slab_.allocate(runtime);
  pinned_slab_.allocate(runtime);
  plan();
  for (StagedPlan& staged : staged_) staged.uploaded = Event(runtime);
  if (residency == Residency::resident)
    set_.emplace(runtime, images);
  else
    feeder_.emplace(runtime, config.train.batch_size, *images.set);
  pass_ = Pass(stream_, state_);
  resume_at(0, 0, 0);
  if (model_.quantizer().starts_centred()) centre_initial_latents();
}

// Data-dependent initialisation (Salimans and Kingma 2016, section 3) of the convolution to the latents, by
// the first batch: mean 0, and a deviation that lets the encoder spread them. fmnist-fsq after an epoch, test
// split: 240 of 240 codes and an MSE of 0.0105 from 0.05, 0.1 and 0.2, but 30 codes from 0.5 and 1, whose
// gradients are too large for the encoder; as torch draws the weights, 0.007 around 0.2, 115 codes and
// 0.0136. A run that is resumed then gets its own weights.
void Trainer::centre_initial_latents() {
  pick_pictures();
  fill_pinned_batch();
  upload_batch();
  load_batch();
  encode();
  const std::vector<float> latents = to_host(model_.latents(), runtime_);
  const size_t D = size_t(model_.latents()[3]), N = latents.size() / D;
  const ParameterStore& p = model_.parameters();
  const ParameterStore::Id weight_id = p.find("quant_conv.weight"), bias_id = p.find("quant_conv.bias");
  const View<float> weight = p.weight(weight_id), bias = p.weight(bias_id);
  std::vector<float> weights = to_host(weight, runtime_), biases = to_host(bias, runtime_);
  for (size_t d = 0; d < D; ++d) {
    double mean = 0.0, variance = 0.0;
    for (size_t n = 0; n < N; ++n) mean += double(latents[n * D + d]) / double(N);
    for (size_t n = 0; n < N; ++n) {
      const double centred = double(latents[n * D + d]) - mean;
      variance += centred * centred / double(N);
    }
    if (!(variance > 0.0) || !std::isfinite(variance)) continue;
    const double scale = kInitialDeviation / std::sqrt(variance);
    for (size_t i = d * (weights.size() / D); i < (d + 1) * (weights.size() / D); ++i)
      weights[i] = float(double(weights[i]) * scale);
    biases[d] = float((double(biases[d]) - mean) * scale);
  }
  const auto upload = [&](const View<float>& to, const std::vector<float>& values) {
    if (to) runtime_.upload(to.data, values.data(), to.bytes(), stream_);
  };
  upload(weight, weights);
  upload(bias, biases);
  upload(p.average(weight_id), weights);
  upload(p.average(bias_id), biases);
  continue_at(0);
}

namespace {

struct Room {
  const char* name;
  void (Trainer::*enter)();
};

}  // namespace

void Trainer::step() {
  static constexpr Room kRooms[] = {{"picture bytes", &Trainer::pick_pictures},
                                    {"pinned batch", &Trainer::fill_pinned_batch},
                                    {"device batch", &Trainer::upload_batch},
                                    {"device batch", &Trainer::load_batch},
                                    {"encoder", &Trainer::encode},
                                    {"quantizer", &Trainer::quantize},
                                    {"decoder", &Trainer::decode},
                                    {"losses", &Trainer::measure_loss},
                                    {"gradients", &Trainer::compute_gradients},
                                    {"updates", &Trainer::update},
                                    {"metrics", &Trainer::record}};
  // A batch from the host is loaded outside: the copy stream waits until it was read, and a graph's events
  // are seen by nobody else.
  const size_t first_of_graph = set_ ? 3 : 4;
  const auto enter = [this](std::span<const Room> rooms) {
    for (const Room& room : rooms) {
      const Range range(room.name);
      (this->*room.enter)();
    }
  };
  const std::span<const Room> rooms(kRooms), in_graph = rooms.subspan(first_of_graph);
  enter(rooms.first(first_of_graph));
  if (graph_.empty() && graph_is_due()) capture([&] { enter(in_graph); });
  if (graph_.empty()) {
    enter(in_graph);
  } else {
    const Range range("graph");
    graph_.launch(stream_);
  }
  ++step_;
  // On the CPU reading is free, and a run then ends at the very step.
  if (stream_.device == Device::cpu || step_ - steps_read_ == kMetricsRing) read_metrics();
}

bool Trainer::graph_is_due() {
  if (!wants_graph_ || stream_.device == Device::cpu || !model_.quantizer().initialised()) return false;
  return steps_before_graph_-- <= 0;
}

// What capturing does not allow shows as an error of the call, and nothing has run then.
void Trainer::capture(const std::function<void()>& enqueue) {
  try {
    graph_ = Graph(stream_, enqueue);
  } catch (const Error& error) {
    wants_graph_ = false;
    if (tell_) tell_(error.what());
  }
}

void Trainer::pick_pictures() {
  if (feeder_) feeder_->pick(images_, uint64_t(config_.seed), epoch(step_), first_index(step_));
}

void Trainer::fill_pinned_batch() {
  if (feeder_) feeder_->fill(*images_.set);
}

void Trainer::upload_batch() {
  if (feeder_) feeder_->upload(model_);
  plan_steps();
}

void Trainer::load_batch() {
  const bool gathers_labels = set_ && model_.classifier() != nullptr;
  run(BeginStepOp{.state = state_,
                  .places = places_,
                  .labels = gathers_labels ? model_.classifier()->labels() : View<int32_t>(),
                  .plan = plan_,
                  .set_labels = gathers_labels ? set_->labels() : View<const int32_t>(),
                  .images = images_.count(),
                  .seed = uint64_t(config_.seed)},
      stream_);
  if (set_)
    model_.load_images(pass_, set_->images(), places_);
  else
    model_.load_images(pass_);
}

void Trainer::encode() { model_.encode(pass_); }

void Trainer::quantize() { model_.quantize(pass_); }

void Trainer::decode() {
  model_.decode(pass_);
  model_.classify(pass_);
}

void Trainer::measure_loss() { model_.measure_loss(pass_); }

void Trainer::compute_gradients() { model_.backward(stream_); }

void Trainer::update() {
  Quantizer& quantizer = model_.quantizer();
  adam_.update(model_.parameters(),
               {.clip = config_.train.gradient_clip,
                .weight_decay = config_.train.weight_decay,
                .halt_after = config_.train.on_nan == "stop" ? 1 : kMaxSkippedInARow},
               model_.loss(), quantizer.initialised() ? quantizer.first_bad_row() : View<const int32_t>(),
               state_, stream_);
  model_.update(adam_.poisoned(), adam_.state(), stream_);
  quantizer.update({.runtime = runtime_, .state = state_, .poisoned = adam_.poisoned()}, stream_);
}

void Trainer::record() {
  const Quantizer& quantizer = model_.quantizer();
  const bool has_codes = quantizer.codebook_size() > 0 && quantizer.initialised();
  run(RecordStepOp{.ring = ring_,
                   .state = state_,
                   .reconstruction = model_.loss(),
                   .error = model_.error(),
                   .classification = model_.classifier() ? model_.classifier()->loss() : View<const float>(),
                   .squared_norm = adam_.squared_norm(),
                   .poisoned = adam_.poisoned(),
                   .distance = has_codes ? quantizer.distance() : View<const float>(),
                   .first_bad_row = has_codes ? quantizer.first_bad_row() : View<const int32_t>(),
                   .replaced = quantizer.replaced(),
                   .health = quantizer.health()},
      stream_);
}

// The device's next step is this one.
void Trainer::continue_at(int64_t step) {
  step_ = steps_read_ = steps_planned_ = step;
  const StepState before{.step = step - 1};
  runtime_.upload(state_.data, &before, state_.bytes(), stream_);
  runtime_.synchronize(stream_);
}

// The scalars of the next steps, when the device has used up those that it was given.
void Trainer::plan_steps() {
  if (step_ < steps_planned_) return;
  std::swap(staged_[0], staged_[1]);
  StagedPlan& staged = staged_[0];
  staged.uploaded.wait();
  for (steps_planned_ = step_; steps_planned_ < step_ + kPlannedSteps; ++steps_planned_)
    staged.steps.data[steps_planned_ % kPlannedSteps] = {
        .step = steps_planned_,
        .learning_rate = float(learning_rate(steps_planned_)),
        .epoch = epoch(steps_planned_),
        .first_index = first_index(steps_planned_),
        .mix = mix(steps_planned_)};
  runtime_.upload(plan_.data, staged.steps.data, plan_.bytes(), stream_);
  staged.uploaded.record(stream_);
}

// The steps since the last reading, if they were not more than the ring holds.
void Trainer::read_metrics() {
  runtime_.download(host_optimizer_.data, adam_.state().data, host_optimizer_.bytes(), stream_);
  runtime_.download(host_ring_.data, ring_.data, ring_.bytes(), stream_);
  runtime_.synchronize(stream_);
  for (; steps_read_ < step_; ++steps_read_) metrics_.push_back(host_ring_.data[steps_read_ % kMetricsRing]);
  if (int64_t(metrics_.size()) > kMetricsRing)
    metrics_.erase(metrics_.begin(), metrics_.end() - kMetricsRing);
  if (host_optimizer_.data->halted_at >= 0) fail_not_finite();
}

std::vector<StepMetrics> Trainer::take_metrics() {
  read_metrics();
  return std::exchange(metrics_, {});
}

const OptimizerState& Trainer::optimizer() {
  read_metrics();
  return host_optimizer_.data[0];
}

double Trainer::learning_rate(int64_t step) const {
  const double base = config_.train.learning_rate;
  if (config_.train.schedule == "constant") return base;
  const int64_t warmup = config_.train.warmup_steps;
  if (step < warmup) return base * double(step + 1) / double(warmup);
  const double progress = double(step - warmup) / double(std::max<int64_t>(1, total_steps() - warmup));
  return base * 0.5 * (1.0 + std::cos(std::numbers::pi * std::min(1.0, progress)));
}

float Trainer::mix(int64_t step) const {
  if (config_.data.mixup == 0.0) return 1.0f;
  return draw_mix(config_.data.mixup,
                  {.seed = uint64_t(config_.seed), .step = uint32_t(step), .use = RandomUse::mixup});
}

StepReport Trainer::report() {
  read_metrics();
  if (step_ == 0) return {};
  const StepMetrics& last = host_ring_.data[(step_ - 1) % kMetricsRing];
  const Quantizer& quantizer = model_.quantizer();
  const double distance = double(last.distance);
  StepReport report{.step = step_,
                    .reconstruction = double(last.reconstruction),
                    .classification = double(last.classification),
                    .commitment = quantizer.commitment_loss_weight() * distance,
                    .error = double(last.error),
                    .gradient_norm = std::sqrt(double(last.squared_norm)),
                    .learning_rate = learning_rate(step_ - 1),
                    .has_codebook = quantizer.codebook_size() > 0,
                    .health = last.health,
                    .replaced = last.replaced};
  report.loss = report.reconstruction + report.classification + report.commitment +
                quantizer.codebook_loss_weight() * distance;
  return report;
}

void Trainer::resume_at(int64_t step, int64_t skipped, int64_t skipped_in_a_row) {
  host_optimizer_.data[0] = Adam::state_after(step, skipped, skipped_in_a_row);
  runtime_.upload(adam_.state().data, host_optimizer_.data, host_optimizer_.bytes(), stream_);
  continue_at(step);
}

namespace {

// The first row, along the first dimension, with a value that is not finite; or -1.
int64_t first_bad_row(const View<const float>& tensor, const Runtime& runtime) {
  const std::vector<float> values = to_host(tensor, runtime);
  const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  return bad == values.end() ? -1 : (bad - values.begin()) / (tensor.size() / tensor[0]);
}

}  // namespace

std::string Trainer::first_bad_tensor() const {
  const StepMetrics& step = host_ring_.data[host_optimizer_.data->halted_at % kMetricsRing];
  if (step.first_bad_row >= 0) return fmt::format("latent row {}", step.first_bad_row);
  if (!std::isfinite(step.classification)) return "the classification loss";
  if (!std::isfinite(step.reconstruction)) {
    const int64_t image = first_bad_row(model_.reconstruction(), runtime_);
    return image < 0 ? "the reconstruction loss" : fmt::format("the reconstruction of image {}", image);
  }
  const ParameterStore& p = model_.parameters();
  for (size_t id = 0; id < p.parameters().size(); ++id)
    if (const int64_t row = first_bad_row(p.gradient(id), runtime_); row >= 0)
      return fmt::format("row {} of the gradient of {}", row, p.parameters()[id].name);
  return "the norm of all gradients";
}

// Repeats the bad step if others followed it, to name the tensor: since then nothing has changed the weights.
void Trainer::fail_not_finite() {
  const int64_t bad_step = host_optimizer_.data->halted_at;
  if (bad_step != step_ - 1) {
    continue_at(bad_step);
    pick_pictures();
    fill_pinned_batch();
    upload_batch();
    load_batch();
    encode();
    quantize();
    decode();
    measure_loss();
    compute_gradients();
  }
  throw Error(ErrorKind::failed, fmt::format("{} is not finite", first_bad_tensor()),
              "the last checkpoint is good; start a new run with a lower train.learning_rate, with "
              "train.gradient_clip = "
              "1.0, or with train.on_nan = \"skip\", which drops such steps",
              fmt::format("step {}", bad_step + 1));
}

}  // namespace vqlab
