#include "vector_quantizer.hpp"

#include <limits>

#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/ema_update.hpp"
#include "kernels/codebook/kmeans.hpp"
#include "kernels/codebook/lookup.hpp"
#include "kernels/codebook/restart.hpp"
#include "kernels/codebook/rotation.hpp"
#include "kernels/codebook/straight_through.hpp"
#include "kernels/core/copy.hpp"

namespace vqlab {
namespace {

constexpr int kKMeansRounds = 8;

// Latents that k-means starts from: at least 40960 and 10 a code, but no more than an epoch has; whole
// batches.
int64_t reservoir_rows(int64_t K, int64_t per_step, int64_t per_epoch) {
  const int64_t wanted = std::min(std::max<int64_t>(40960, 10 * K), std::max(per_epoch, per_step));
  return (wanted + per_step - 1) / per_step * per_step;
}

}  // namespace

VectorQuantizer::VectorQuantizer(const QuantizerContext& context)
    : K_(context.config.quantizer.codebook_size),
      D_(context.config.quantizer.dim),
      decay_(context.config.quantizer.decay),
      quantizer_weight_(context.config.loss.quantizer_weight),
      commitment_weight_(context.config.loss.commitment_weight),
      codebook_weight_(context.config.loss.codebook_weight),
      mode_(context.mode),
      seed_(uint64_t(context.config.seed)),
      restart_threshold_(float(context.config.quantizer.restart_threshold)),
      restart_every_(context.config.quantizer.restart_every),
      latents_per_step_(context.latents_per_step),
      reservoir_rows_(reservoir_rows(K_, context.latents_per_step, context.latents_per_epoch)),
      from_data_(context.config.quantizer.initialisation == "kmeans"),
      own_codebook_(context.config.quantizer.kind != "vq_loss"),
      rotation_(context.config.quantizer.gradient == "rotation"),
      initialised_(!from_data_) {}

void VectorQuantizer::take_state(Slab& slab) {
  if (own_codebook_) codebook_ = slab.take<float>({K_, D_});
  first_bad_row_ = slab.take<int32_t>({1});
  distance_ = slab.take<float>({1});
  if (mode_ == Mode::inference) return;
  cluster_size_ = slab.take<float>({K_});
  cluster_sum_ = slab.take<float>({K_, D_});
  counts_ = slab.take<int32_t>({K_});
  sums_ = slab.take<float>({K_, D_});
  replaced_ = slab.take<int32_t>({1});
  age_ = slab.take<int32_t>({K_});
  previous_ = slab.take<float>({K_, D_});
  health_scratch_ = slab.take<float>({2 * K_});
  health_ = slab.take<CodebookHealth>({1});
  batches_collected_ = slab.take<int32_t>({1});
  if (rotation_) fallbacks_ = slab.take<int32_t>({1});
  if (from_data_) reservoir_ = slab.take<float>({reservoir_rows_, D_});
}

int64_t VectorQuantizer::state_bytes() {
  Slab measure("measure");
  take_state(measure);
  return measure.bytes();
}

void VectorQuantizer::allocate(const Runtime& runtime) {
  take_state(slab_);
  slab_.allocate(runtime);
  take_state(slab_);
  if (!own_codebook_) codebook_ = parameter();
  if (mode_ == Mode::inference) return;
  // Counts of 1 and sums of one code each: what an average needs so that an unused code keeps its place.
  const std::vector<float> ones(size_t(K_), 1.0f);
  std::vector<float> codes;
  runtime.upload(cluster_size_.data, ones.data(), cluster_size_.bytes(), runtime.compute());
  if (own_codebook_) {
    const RandomKey key{.seed = seed_, .use = RandomUse::codebook};
    codes.resize(size_t(K_ * D_));
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = (2.0f * random_uniform(key, i) - 1.0f) / float(K_);
    runtime.upload(codebook_.data, codes.data(), codebook_.bytes(), runtime.compute());
    adapt_codebook(runtime.compute());
  }
  run(CopyOp{.output = cluster_sum_, .input = codebook_}, runtime.compute());
  run(CopyOp{.output = previous_, .input = codebook_}, runtime.compute());
  runtime.synchronize(runtime.compute());
}

Tensor VectorQuantizer::plan(Arena& arena, const Tensor& latents, Mode mode) {
  latents_ = latents;
  points_ = plan_points(arena, latents);
  const View<float>& z = latents.value;
  const int64_t N = z.rows()[0];
  quantized_.value = arena.take<float>({z[0], z[1], z[2], z[3]});
  quantized_.gradient = latents.gradient;  // the straight-through backward works in place
  codes_ = arena.take<int32_t>({z[0], z[1], z[2]});
  block_sums_ = arena.take<float>({sum_blocks(z.size())});
  const Device device = arena.device();
  int64_t bytes = lookup_scratch_bytes(device, N, K_, D_);
  if (mode == Mode::training) {
    bytes = std::max(bytes, cluster_sums_scratch_bytes(device, N, K_, D_));
    if (from_data_) bytes = std::max(bytes, kmeans_scratch_bytes(device, reservoir_rows_, K_, D_));
  }
  scratch_ = arena.scratch(bytes);
  return quantized_;
}

const LookupVariant* VectorQuantizer::lookup_for(int64_t N) const {
  return kernels_.lookup != nullptr && kernels_.lookup->supports(N, K_, D_) ? kernels_.lookup : nullptr;
}

const ClusterSumsVariant* VectorQuantizer::cluster_sums_for(int64_t N) const {
  const ClusterSumsVariant* chosen = kernels_.cluster_sums;
  return chosen != nullptr && chosen->supports(N, K_, D_) ? chosen : nullptr;
}

float VectorQuantizer::gradient_scale(double weight) const {
  return float(2.0 * quantizer_weight_ * weight / double(latents_.value.size()));
}

void VectorQuantizer::forward(const Pass& pass) {
  const Stream stream = pass.stream;
  make_points(stream);
  if (!initialised_) {
    run(CopyOp{.output = quantized_.value.rows(), .input = points_}, stream);
    return;
  }
  const View<int32_t> codes(codes_.data, {codes_.size()});
  run(LookupOp{.codes = codes,
               .first_bad_row = first_bad_row_,
               .latents = points_,
               .codebook = codebook_,
               .scratch = scratch_,
               .variant = lookup_for(points_[0])},
      stream);
  if (!pass.training()) return decode(stream);
  run(ClusterSumsOp{.counts = counts_,
                    .sums = sums_,
                    .latents = points_,
                    .codes = codes,
                    .scratch = scratch_,
                    .variant = cluster_sums_for(codes.size()),
                    .quantized = quantized_.value.rows(),
                    .distance = distance_,
                    .codebook = codebook_},
      stream);
}

void VectorQuantizer::backward(Stream stream) {
  if (initialised_) pass_gradient(stream);
  backward_of_points(stream);
}

// The gradient by points_ into latents_.gradient, and that of a codebook that learns by it.
void VectorQuantizer::pass_gradient(Stream stream) {
  const View<float> d_latents = latents_.gradient.rows(), d_quantized = quantized_.gradient.rows();
  const View<int32_t> codes(codes_.data, {codes_.size()});
  const float scale = gradient_scale(commitment_weight_);
  const View<float> d_codebook = codebook_gradient();
  const View<const int32_t> counts = d_codebook ? counts_ : View<int32_t>();
  const View<const float> sums = d_codebook ? sums_ : View<float>();
  if (rotation_)
    run(RotationBackwardOp{.d_latents = d_latents,
                           .fallbacks = fallbacks_,
                           .d_quantized = d_quantized,
                           .latents = points_,
                           .codebook = codebook_,
                           .codes = codes,
                           .commitment_scale = scale},
        stream);
  if (rotation_ && d_codebook)
    run(CodebookGradientOp{.d_codebook = d_codebook,
                           .codebook = codebook_,
                           .counts = counts,
                           .sums = sums,
                           .scale = gradient_scale(codebook_weight_)},
        stream);
  if (!rotation_)
    run(StraightThroughBackwardOp{.d_latents = d_latents,
                                  .d_quantized = d_quantized,
                                  .latents = points_,
                                  .codebook = codebook_,
                                  .codes = codes,
                                  .commitment_scale = scale,
                                  .d_codebook = d_codebook,
                                  .counts = counts,
                                  .sums = sums,
                                  .codebook_scale = gradient_scale(codebook_weight_)},
        stream);
}

void VectorQuantizer::update_averages(const UpdateContext& context, Stream stream) {
  run(EmaUpdateOp{.codebook = codebook_,
                  .cluster_size = cluster_size_,
                  .cluster_sum = cluster_sum_,
                  .counts = counts_,
                  .sums = sums_,
                  .poisoned = context.poisoned,
                  .decay = float(decay_)},
      stream);
}

void VectorQuantizer::update(const UpdateContext& context, Stream stream) {
  if (!initialised_) return collect_first_latents(context, stream);
  learn_after_optimiser(context, stream);
  run(RestartOp{.codebook = codebook_,
                .cluster_size = cluster_size_,
                .cluster_sum = own_codebook_ ? cluster_sum_ : View<float>(),
                .moment1 = moment1(),
                .moment2 = moment2(),
                .replaced = replaced_,
                .latents = points_,
                .state = context.state,
                .poisoned = context.poisoned,
                .threshold = restart_threshold_,
                .every = restart_every_,
                .seed = seed_},
      stream);
  run(CodebookHealthOp{.health = health_,
                       .age = age_,
                       .previous = previous_,
                       .codebook = codebook_,
                       .counts = counts_,
                       .cluster_size = cluster_size_,
                       .poisoned = context.poisoned,
                       .threshold = restart_threshold_,
                       .scratch = health_scratch_},
      stream);
}

// In the first few steps of a run; the host waits for the device.
void VectorQuantizer::collect_first_latents(const UpdateContext& context, Stream stream) {
  int32_t poisoned = 0, batches = 0;
  context.runtime.download(&poisoned, context.poisoned.data, sizeof poisoned, stream);
  context.runtime.download(&batches, batches_collected_.data, sizeof batches, stream);
  context.runtime.synchronize(stream);
  if (poisoned) return;
  run(CopyOp{.output = View<float>(reservoir_.data + batches * points_.size(), {points_[0], D_}),
             .input = points_},
      stream);
  ++batches;
  context.runtime.upload(batches_collected_.data, &batches, sizeof batches, stream);
  context.runtime.synchronize(stream);
  if (batches * latents_per_step_ < reservoir_rows_) return;
  run(KMeansOp{.codebook = codebook_,
               .cluster_size = cluster_size_,
               .cluster_sum = cluster_sum_,
               .first_bad_row = first_bad_row_,
               .latents = reservoir_,
               .key = {.seed = seed_, .use = RandomUse::kmeans},
               .rounds = kKMeansRounds,
               .count_scale = float(double(latents_per_step_) / double(reservoir_rows_)),
               .scratch = scratch_,
               .lookup = lookup_for(reservoir_rows_),
               .cluster_sums = cluster_sums_for(reservoir_rows_)},
      stream);
  adapt_codebook(stream);
  run(CopyOp{.output = previous_, .input = codebook_}, stream);
  initialised_ = true;
}

void VectorQuantizer::decode(Stream stream) {
  run(StraightThroughOp{.quantized = quantized_.value.rows(),
                        .distance = distance_,
                        .latents = points_,
                        .codebook = codebook_,
                        .codes = View<int32_t>(codes_.data, {codes_.size()}),
                        .block_sums = block_sums_},
      stream);
}

std::vector<StateTensor> VectorQuantizer::training_state() {
  std::vector<StateTensor> state = {{"quantize.ema.cluster_size", cluster_size_, {}},
                                    {"quantize.age", {}, age_}};
  if (own_codebook_) state.push_back({"quantize.ema.embed_avg", cluster_sum_, {}});
  if (!initialised_) {
    state.push_back({"quantize.first_latents", reservoir_, {}});
    state.push_back({"quantize.first_latents.batches", {}, batches_collected_});
  }
  return state;
}

void VectorQuantizer::restored(const Runtime& runtime) {
  if (mode_ != Mode::training) return;
  run(CopyOp{.output = previous_, .input = codebook_}, runtime.compute());
  runtime.synchronize(runtime.compute());
}

}  // namespace vqlab
