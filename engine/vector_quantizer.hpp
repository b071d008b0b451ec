// What vq_ema, vq_loss and vq_cosine share: lookup, the gradient past it, k-means initialisation, restart,
// health.
#pragma once

#include "quantizer.hpp"

namespace vqlab {

class VectorQuantizer : public Quantizer {
 public:
  int64_t state_bytes() override;
  void allocate(const Runtime& runtime) override;
  Tensor plan(Arena& arena, const Tensor& latents, Mode mode) override;
  void use_kernels(const KernelChoice& choice) override { kernels_ = choice; }
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;
  void update(const UpdateContext& context, Stream stream) override;
  void decode(Stream stream) override;

  int64_t codebook_size() const override { return K_; }
  View<int32_t> codes() const override { return codes_; }
  View<const float> codebook() const override { return codebook_; }
  View<const float> distance() const override { return distance_; }
  double commitment_loss_weight() const override { return quantizer_weight_ * commitment_weight_; }
  View<const int32_t> first_bad_row() const override { return first_bad_row_; }
  View<const CodebookHealth> health() const override { return health_; }
  View<const int32_t> replaced() const override { return replaced_; }
  bool initialised() const override { return initialised_; }
  std::vector<StateTensor> training_state() override;
  void set_initialised(bool initialised) override { initialised_ = initialised; }
  void restored(const Runtime& runtime) override;

 protected:
  explicit VectorQuantizer(const QuantizerContext& context);

  // How the codebook learns: by its gradient (K, D), which the optimiser then applies, or by averages after
  // it.
  virtual View<float> codebook_gradient() const { return {}; }
  virtual void learn_after_optimiser(const UpdateContext&, Stream) {}
  // The averages, and the codebook from them.
  void update_averages(const UpdateContext& context, Stream stream);
  // What is compared with the codes, (N, D): the latents themselves, or what is made of them. A quantizer
  // that makes something of them plans it, computes it before the lookup, takes latents.gradient from the
  // gradient by it, in place, and brings a codebook from elsewhere (the initial one, k-means) to the same
  // form.
  virtual View<float> plan_points(Arena&, const Tensor& latents) { return latents.value.rows(); }
  virtual void make_points(Stream) {}
  virtual void backward_of_points(Stream) {}
  virtual void adapt_codebook(Stream) {}
  // The codebook, if it is not part of the quantizer's own state, and its Adam moments.
  virtual View<float> parameter() const { return {}; }
  virtual View<float> moment1() const { return {}; }
  virtual View<float> moment2() const { return {}; }

  // 2 * quantizer_weight * weight / (N * D): the factor of a mean squared distance's gradient.
  float gradient_scale(double weight) const;

  const int64_t K_, D_;
  const double decay_, quantizer_weight_, commitment_weight_, codebook_weight_;
  View<float> codebook_;                    // (K, D)
  View<float> cluster_size_, cluster_sum_;  // (K), (K, D)
  View<int32_t> counts_;                    // (K), of the batch
  View<float> sums_;                        // (K, D), of the batch
  Tensor latents_, quantized_;
  View<float> points_;  // (N, D)

 private:
  void take_state(Slab& slab);
  const LookupVariant* lookup_for(int64_t N) const;
  const ClusterSumsVariant* cluster_sums_for(int64_t N) const;
  void pass_gradient(Stream stream);
  void collect_first_latents(const UpdateContext& context, Stream stream);

  const Mode mode_;
  const uint64_t seed_;
  const float restart_threshold_;
  const int64_t restart_every_;
  const int64_t latents_per_step_, reservoir_rows_;
  const bool from_data_;     // the codebook starts from k-means
  const bool own_codebook_;  // and is not a parameter
  const bool rotation_;      // else straight-through
  bool initialised_;
  KernelChoice kernels_;

  Slab slab_{"codebook state"};
  View<int32_t> codes_, first_bad_row_, replaced_, age_, batches_collected_, fallbacks_;
  View<float> distance_, block_sums_, previous_, health_scratch_;
  View<CodebookHealth> health_;
  View<float> reservoir_;  // (R, D), the first latents, for k-means
  View<std::byte> scratch_;
};

}  // namespace vqlab
