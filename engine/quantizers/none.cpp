// The plain autoencoder: latents pass unchanged. The baseline that a codebook is measured against.
#include "engine/quantizer.hpp"

namespace vqlab {
namespace {

class NoQuantizer : public Quantizer {
 public:
  Tensor plan(Arena&, const Tensor& latents, Mode) override { return latents; }
  void forward(const Pass&) override {}
};

}  // namespace

extern const QuantizerEntry quantizer_none;
const QuantizerEntry quantizer_none{.name = "none",
                                    .idea = "plain autoencoder: latents pass unchanged, no codes",
                                    .make = [](const QuantizerContext&) -> std::unique_ptr<Quantizer> {
                                      return std::make_unique<NoQuantizer>();
                                    }};

}  // namespace vqlab
