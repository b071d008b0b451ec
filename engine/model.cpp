#include "model.hpp"

#include <bit>

#include "kernels/core/copy.hpp"

namespace vqlab {
namespace {

constexpr int64_t kMaxBatch = 65536;

constexpr ConvGeometry kHalve{.kernel = 4, .stride = 2, .padding = 1};
constexpr ConvGeometry kDouble{.kind = ConvKind::transposed, .kernel = 4, .stride = 2, .padding = 1};
constexpr ConvGeometry kSame{.kernel = 3, .stride = 1, .padding = 1};

// Channels after the i-th of `stages` halvings: half the width after the first, unless it is the only one.
int64_t stage_channels(int64_t hidden, int64_t i, int64_t stages) {
  return i == 0 && stages > 1 ? hidden / 2 : hidden;
}

}  // namespace

Model::Model(const Config& config, const ImageShape& shape, int64_t batch, int64_t images_per_epoch,
             Mode mode)
    : config_(config),
      shape_(shape),
      batch_(batch),
      mode_(mode),
      precision_(parse_precision(config.train.precision)) {
  build_encoder();
  const int64_t latents_per_image = code_height() * code_width();
  quantizer_ = make_quantizer({.config = config_,
                               .parameters = parameters_,
                               .mode = mode,
                               .latents_per_step = config.train.batch_size * latents_per_image,
                               .latents_per_epoch = images_per_epoch * latents_per_image});
  if (has_decoder()) build_decoder();
  if (config_.loss.classifier_weight > 0.0)
    classifier_ = std::make_unique<Classifier>(parameters_, config_,
                                               latents_per_image * config_.quantizer.dim, precision_);
}

void Model::build_encoder() {
  const ModelConfig& m = config_.model;
  const bool normalised = m.norm != "none";
  const int64_t stages = std::countr_zero(uint64_t(m.downsampling));
  int64_t channels = shape_.channels;
  const auto add = [&](int64_t number, const ConvGeometry& geometry, int64_t next) {
    add_conv(encoder_, parameters_, fmt::format("encoder.conv{}", number),
             fmt::format("encoder.norm{}", number), geometry, channels, next, Activation::relu, precision_,
             normalised);
    channels = next;
  };
  for (int64_t i = 0; i < stages; ++i) add(i + 1, kHalve, stage_channels(m.hidden, i, stages));
  add(stages + 1, kSame, m.hidden);
  for (int64_t i = 0; i < m.residual_blocks; ++i)
    encoder_.add<Residual>(parameters_, fmt::format("encoder.residual{}", i + 1), m.hidden, m.residual_hidden,
                           precision_, normalised);
  encoder_.add<ReLU>();
  to_latents_.add<Conv>(parameters_, "quant_conv", ConvGeometry{.kernel = 1}, m.hidden, config_.quantizer.dim,
                        Activation::none, precision_);
}

void Model::build_decoder() {
  const ModelConfig& m = config_.model;
  const bool normalised = m.norm == "batch";
  const int64_t stages = std::countr_zero(uint64_t(m.downsampling));
  add_conv(decoder_, parameters_, "decoder.conv1", "decoder.norm1", kSame, config_.quantizer.dim, m.hidden,
           Activation::none, precision_, normalised);
  for (int64_t i = 0; i < m.residual_blocks; ++i)
    decoder_.add<Residual>(parameters_, fmt::format("decoder.residual{}", i + 1), m.hidden, m.residual_hidden,
                           precision_, normalised);
  decoder_.add<ReLU>();
  int64_t channels = m.hidden;
  for (int64_t i = 0; i < stages; ++i) {
    const bool last = i + 1 == stages;
    const int64_t next = last ? shape_.channels : stage_channels(m.hidden, stages - 2 - i, stages);
    const bool norm_here = normalised && !last;
    auto& up = upsampling_.add<ConvTranspose>(
        parameters_, fmt::format("decoder.up{}", i + 1), kDouble, channels, next,
        last || norm_here ? Activation::none : Activation::relu, precision_);
    if (last) up.pad_output_channels();
    if (norm_here)
      upsampling_.add<BatchNorm>(parameters_, fmt::format("decoder.up_norm{}", i + 1), next,
                                 Activation::relu);
    channels = next;
  }
}

int64_t Model::padded(int64_t side) const {
  const int64_t d = config_.model.downsampling;
  return (side + d - 1) / d * d;
}

void Model::plan_encoder(Arena& arena) {
  images_ = arena.take<uint8_t>({batch_, shape_.height, shape_.width, shape_.channels});
  input_.value = arena.take<float>({batch_, padded(shape_.height), padded(shape_.width),
                                    padded_channels(arena.device(), shape_.channels, precision_)});
  encoder_hidden_ = encoder_.plan(arena, input_, mode_);
  latents_ = to_latents_.plan(arena, encoder_hidden_, mode_);
}

void Model::plan_heads(Arena& arena, const Tensor& quantized) {
  if (has_decoder()) {
    decoder_hidden_ = decoder_.plan(arena, quantized, mode_);
    reconstruction_ = upsampling_.plan(arena, decoder_hidden_, mode_);
  }
  if (classifier_) classifier_->plan(arena, quantized, mode_, !has_decoder());
}

void Model::plan(Arena& arena) {
  plan_encoder(arena);
  quantized_ = quantizer_->plan(arena, latents_, mode_);
  plan_heads(arena, quantized_);
  VQ_REQUIRE(!latents_.rectified && !reconstruction_.rectified, "quantizer and loss undo no ReLU");
  loss_ = arena.take<float>({1});
  error_ = arena.take<float>({1});
  squared_error_ = arena.take<float>({batch_});
  block_sums_ = arena.take<float>({sum_blocks(input_.value.size())});
}

std::vector<std::pair<std::string, int64_t>> Model::memory_budget(Device device) {
  Arena measure(device);
  plan(measure);
  const int64_t slab = parameters_.slab_bytes();
  std::vector<std::pair<std::string, int64_t>> budget = {{"weights", slab}};
  if (mode_ == Mode::training) budget.insert(budget.end(), {{"gradients", slab}, {"Adam moments", 2 * slab}});
  if (mode_ == Mode::training && config_.train.weight_average > 0.0)
    budget.emplace_back("averaged weights", slab);
  budget.emplace_back("codebook state", quantizer_->state_bytes());
  budget.emplace_back(mode_ == Mode::training ? "activations and their gradients" : "activations",
                      measure.activation_bytes());
  budget.emplace_back("scratch", measure.scratch_bytes());
  return budget;
}

std::vector<LayerConvolution> Model::convolutions(Device device) {
  Arena measure(device);
  if (!arena_.allocated()) {
    plan_encoder(measure);
    // What the quantizer gives has the shape of the latents. Its own plan may need the device itself.
    plan_heads(measure, latents_);
  }
  std::vector<LayerConvolution> list;
  for (Sequential* part : {&encoder_, &to_latents_, &decoder_, &upsampling_}) part->list_convolutions(list);
  if (classifier_) classifier_->list_convolutions(list);
  return list;
}

void Model::allocate(const Runtime& runtime) {
  parameters_.allocate(runtime, mode_ == Mode::training, config_.train.weight_average > 0.0);
  if (mode_ == Mode::training) parameters_.initialise(uint64_t(config_.seed), runtime);
  quantizer_->allocate(runtime);
  images_read_ = Event(runtime);
  arena_ = Arena(runtime.device());
  plan(arena_);
  arena_.allocate(runtime);
  plan(arena_);
}

void Model::use_kernels(const KernelChoice& choice, const std::string& device_name) {
  quantizer_->use_kernels(choice);
  kernels_ = names_of(choice, device_name);
}

void Model::load_images(const Pass& pass) {
  load_images(pass, images_, {});
  images_read_.record(pass.stream);
}

void Model::load_images(const Pass& pass, const View<const uint8_t>& set, const View<const int32_t>& places) {
  const bool training = pass.training();
  run(ImageInputOp{.output = input_.value,
                   .images = set,
                   .places = places,
                   .flip = training && config_.data.flip,
                   .shift = training ? config_.data.shift : 0,
                   .mixup = training && config_.data.mixup > 0.0,
                   .seed = uint64_t(config_.seed),
                   .state = pass.step},
      pass.stream);
}

void Model::encode(const Pass& pass) {
  encoder_.forward(pass);
  to_latents_.forward(pass);
}

void Model::decode_hidden(const Pass& pass) {
  if (has_decoder()) decoder_.forward(pass);
}

void Model::upsample(const Pass& pass) {
  if (has_decoder()) upsampling_.forward(pass);
}

void Model::classify(const Pass& pass) {
  if (classifier_) classifier_->forward(pass);
}

void Model::require_finite_latents(const Runtime& runtime, int64_t first) const {
  const View<const int32_t> flag = quantizer_->first_bad_row();
  if (!flag || !quantizer_->initialised()) return;
  int32_t row = -1;
  runtime.download(&row, flag.data, sizeof row, runtime.compute());
  runtime.synchronize(runtime.compute());
  if (row >= 0)
    throw Error(
        ErrorKind::failed,
        fmt::format("a latent of image {} is not finite", first + row / (code_height() * code_width())),
        "the weights have diverged: use an earlier checkpoint, or train with a lower train.learning_rate",
        fmt::format("latent row {}", row));
}

void Model::measure_loss(const Pass& pass) {
  if (classifier_) classifier_->measure_loss(pass);
  if (!has_decoder()) return;
  run(ReconstructionLossOp{.d_reconstruction = pass.training() ? reconstruction_.gradient : View<float>(),
                           .loss = loss_,
                           .error = error_,
                           .squared_error = squared_error_,
                           .reconstruction = reconstruction_.value,
                           .target = input_.value,
                           .height = shape_.height,
                           .width = shape_.width,
                           .channels = shape_.channels,
                           .kind = config_.loss.reconstruction == "l1" ? ReconstructionKind::absolute
                                                                       : ReconstructionKind::squared,
                           .scale = loss_scale_ * float(config_.loss.reconstruction_weight),
                           .block_sums = block_sums_},
      pass.stream);
}

void Model::backward(Stream stream) {
  if (has_decoder()) {
    upsampling_.backward(stream);
    decoder_.backward(stream);
  }
  if (classifier_) classifier_->backward(stream);
  quantizer_->backward(stream);
  to_latents_.backward(stream);
  encoder_.backward(stream);
}

void Model::update(const View<const int32_t>& poisoned, const View<const OptimizerState>& optimizer,
                   Stream stream) {
  for (Sequential* part : {&encoder_, &decoder_, &upsampling_}) part->update(poisoned, stream);
  if (!parameters_.averages()) return;
  run(AverageWeightsOp{.averages = parameters_.averages(),
                       .weights = parameters_.values(),
                       .optimizer = optimizer,
                       .poisoned = poisoned,
                       .decay = float(config_.train.weight_average)},
      stream);
}

void Model::swap_averages(Stream stream) {
  if (parameters_.averages()) run(SwapOp{.a = parameters_.averages(), .b = parameters_.values()}, stream);
}

void Model::set_variance(double variance) {
  if (config_.loss.reconstruction != "mse_over_variance") return;
  if (!(variance > 0.0))
    throw Error(ErrorKind::data, "all training pixels are equal: their variance is 0",
                "check the data, or set loss.reconstruction = \"mse\"", config_.data.path);
  loss_scale_ = float(1.0 / variance);
}

HostImages images_to_host(const View<const float>& images, int64_t channels, const Runtime& runtime) {
  HostImages host{to_host(images, runtime), images[1], images[2], channels};
  const int64_t padded = images[3], pixels = images.size() / padded;
  if (padded == channels) return host;
  for (int64_t p = 0; p < pixels; ++p)
    std::copy_n(host.values.begin() + p * padded, channels, host.values.begin() + p * channels);
  host.values.resize(size_t(pixels * channels));
  return host;
}

int64_t largest_batch(const Config& config, const ImageShape& shape, int64_t images_per_epoch, Device device,
                      int64_t bytes) {
  const auto fits = [&](int64_t batch) {
    Config candidate = config;
    candidate.train.batch_size = batch;
    int64_t total = 0;
    for (const auto& [name, part] :
         Model(candidate, shape, batch, images_per_epoch, Mode::training).memory_budget(device))
      total += part;
    return total <= bytes;
  };
  int64_t low = 0, high = kMaxBatch + 1;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace vqlab
