// The codebook is a parameter, trained by the gradient of the codebook loss.
#include "engine/vector_quantizer.hpp"
#include "kernels/codebook/ema_update.hpp"

namespace vqlab {
namespace {

class LossQuantizer : public VectorQuantizer {
 public:
  explicit LossQuantizer(const QuantizerContext& context)
      : VectorQuantizer(context),
        parameters_(context.parameters),
        id_(parameters_.add("quantize.embedding.weight", {K_, D_}, 1.0f / float(K_))) {}
  double codebook_loss_weight() const override { return quantizer_weight_ * codebook_weight_; }

 private:
  View<float> codebook_gradient() const override { return parameters_.gradient(id_); }
  void learn_after_optimiser(const UpdateContext& context, Stream stream) override {
    run(AverageCountsOp{.cluster_size = cluster_size_,
                        .counts = counts_,
                        .poisoned = context.poisoned,
                        .decay = float(decay_)},
        stream);
  }
  View<float> parameter() const override { return parameters_.weight(id_); }
  View<float> moment1() const override { return parameters_.moment1(id_); }
  View<float> moment2() const override { return parameters_.moment2(id_); }

  ParameterStore& parameters_;
  const ParameterStore::Id id_;
};

}  // namespace

extern const QuantizerEntry quantizer_vq_loss;
const QuantizerEntry quantizer_vq_loss{
    .name = "vq_loss",
    .idea = "nearest code; the codebook is trained by the codebook loss",
    .make = [](const QuantizerContext& context) -> std::unique_ptr<Quantizer> {
      return std::make_unique<LossQuantizer>(context);
    }};

}  // namespace vqlab
