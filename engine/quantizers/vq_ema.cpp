// The codebook follows moving averages of the latents that chose each code.
#include "engine/vector_quantizer.hpp"

namespace vqlab {
namespace {

class EmaQuantizer : public VectorQuantizer {
 public:
  explicit EmaQuantizer(const QuantizerContext& context) : VectorQuantizer(context) {}
  std::vector<StateTensor> model_state() override { return {{"quantize.embedding.weight", codebook_, {}}}; }

 private:
  void learn_after_optimiser(const UpdateContext& context, Stream stream) override {
    update_averages(context, stream);
  }
};

}  // namespace

extern const QuantizerEntry quantizer_vq_ema;
const QuantizerEntry quantizer_vq_ema{
    .name = "vq_ema",
    .idea = "nearest code; the codebook follows moving averages of its latents",
    .make = [](const QuantizerContext& context) -> std::unique_ptr<Quantizer> {
      return std::make_unique<EmaQuantizer>(context);
    }};

}  // namespace vqlab
