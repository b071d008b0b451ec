// The seam between encoder and decoder: what turns latents into codes and back.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "config.hpp"
#include "kernel_choice.hpp"
#include "kernels/codebook/health.hpp"
#include "kernels/core/step_state.hpp"
#include "layer.hpp"
#include "params.hpp"

namespace vqlab {

// A tensor of a quantizer's state, as checkpoints keep it.
struct StateTensor {
  std::string name;
  View<float> floats;  // one of the two
  View<int32_t> integers;
};

// What the optimiser's room gives a quantizer in each step.
struct UpdateContext {
  const Runtime& runtime;
  View<const StepState> state;   // (1)
  View<const int32_t> poisoned;  // (1), not 0: learn nothing from this batch
};

// Latents and quantized are (B, h, w, D); codes (B, h, w), in [0, codebook_size).
class Quantizer {
 public:
  virtual ~Quantizer() = default;

  // Bytes of the state that lives as long as the quantizer; allocate() takes and initialises it, once, before
  // plan's binding pass.
  virtual int64_t state_bytes() { return 0; }
  virtual void allocate(const Runtime&) {}
  // As Layer::plan. Returns quantized.
  virtual Tensor plan(Arena& arena, const Tensor& latents, Mode mode) = 0;
  // The variants to run, before the first pass; where one does not support a shape, the first that does.
  virtual void use_kernels(const KernelChoice&) {}
  // quantized.value and codes from latents.value; in a training step also what the codebook learns from
  // (cluster counts and sums).
  virtual void forward(const Pass& pass) = 0;
  // latents.gradient from quantized.gradient, and the gradient of a codebook that is a parameter.
  virtual void backward(Stream) {}
  // After the optimiser: moving averages, restart, health.
  virtual void update(const UpdateContext&, Stream) {}
  // quantized.value from codes that the caller has written into codes().
  virtual void decode(Stream) {}

  // Whether training starts from latents of mean 0 and a known deviation in each dimension.
  virtual bool starts_centred() const { return false; }
  // 0 for the plain autoencoder, which has no codes.
  virtual int64_t codebook_size() const { return 0; }
  // Whether the nearest code is looked up in a codebook.
  virtual bool looks_up() const { return codebook_size() > 0; }
  virtual View<int32_t> codes() const { return {}; }
  virtual View<const float> codebook() const { return {}; }
  // Mean squared distance of latents and codes (1), and what its parts weigh in the total loss; absent
  // without codes.
  virtual View<const float> distance() const { return {}; }
  virtual double codebook_loss_weight() const { return 0.0; }
  virtual double commitment_loss_weight() const { return 0.0; }
  virtual View<const int32_t> first_bad_row() const { return {}; }
  virtual View<const CodebookHealth> health() const { return {}; }
  virtual View<const int32_t> replaced() const { return {}; }

  // False until a codebook that starts from data has been initialised; until then latents pass unchanged.
  virtual bool initialised() const { return true; }
  // What a checkpoint keeps beside the parameters: `model_state` in the model's file, `training_state` in the
  // optimiser's. To restore: set_initialised(), then fill what these two list, then restored().
  virtual std::vector<StateTensor> model_state() { return {}; }
  virtual std::vector<StateTensor> training_state() { return {}; }
  virtual void set_initialised(bool) {}
  virtual void restored(const Runtime&) {}
};

// What a quantizer needs to know to be built.
struct QuantizerContext {
  const Config& config;
  ParameterStore& parameters;
  Mode mode;
  int64_t latents_per_step;  // N of a training batch
  int64_t latents_per_epoch;
};

// An entry of quantizers.def; its file is quantizers/<name>.cpp.
struct QuantizerEntry {
  std::string_view name;
  std::string_view idea;  // one line
  std::unique_ptr<Quantizer> (*make)(const QuantizerContext& context);
};

std::span<const QuantizerEntry* const> quantizers();
std::unique_ptr<Quantizer> make_quantizer(const QuantizerContext& context);

}  // namespace vqlab
