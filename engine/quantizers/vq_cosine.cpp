// Latents and codes on the unit sphere, so that only directions are compared; the codebook follows moving
// averages of unit latents and is brought back to the sphere.
#include "engine/vector_quantizer.hpp"
#include "kernels/codebook/unit_rows.hpp"

namespace vqlab {
namespace {

class CosineQuantizer : public VectorQuantizer {
 public:
  explicit CosineQuantizer(const QuantizerContext& context) : VectorQuantizer(context) {}
  std::vector<StateTensor> model_state() override { return {{"quantize.embedding.weight", codebook_, {}}}; }

 private:
  View<float> plan_points(Arena& arena, const Tensor& latents) override {
    const View<float> rows = latents.value.rows();
    return arena.take<float>({rows[0], rows[1]});
  }
  void make_points(Stream stream) override {
    run(UnitRowsOp{.output = points_, .input = latents_.value.rows(), .poisoned = {}}, stream);
  }
  void backward_of_points(Stream stream) override {
    const View<float> gradient = latents_.gradient.rows();
    run(UnitRowsBackwardOp{.d_input = gradient, .d_output = gradient, .input = latents_.value.rows()},
        stream);
  }
  void adapt_codebook(Stream stream) override {
    run(UnitRowsOp{.output = codebook_, .input = codebook_, .poisoned = {}}, stream);
  }
  void learn_after_optimiser(const UpdateContext& context, Stream stream) override {
    update_averages(context, stream);
    run(UnitRowsOp{.output = codebook_, .input = codebook_, .poisoned = context.poisoned}, stream);
  }
};

}  // namespace

extern const QuantizerEntry quantizer_vq_cosine;
const QuantizerEntry quantizer_vq_cosine{
    .name = "vq_cosine",
    .idea = "nearest code on the unit sphere; the codebook follows moving averages of unit latents",
    .make = [](const QuantizerContext& context) -> std::unique_ptr<Quantizer> {
      return std::make_unique<CosineQuantizer>(context);
    }};

}  // namespace vqlab
