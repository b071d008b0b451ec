// Finite scalar quantisation: the codebook is a grid of levels that nobody learns. It has no loss term, no
// restart and no state in a model's file.
#include "kernels/codebook/fsq.hpp"
#include "engine/quantizer.hpp"
#include "kernels/codebook/ema_update.hpp"

namespace vqlab {
namespace {

class FsqQuantizer : public Quantizer {
 public:
  explicit FsqQuantizer(const QuantizerContext& context)
      : grid_(fsq_grid(context.config.quantizer.levels)),
        decay_(float(context.config.quantizer.decay)),
        dead_threshold_(float(context.config.quantizer.restart_threshold)),
        mode_(context.mode) {}

  int64_t state_bytes() override {
    Slab measure("measure");
    take_state(measure);
    return measure.bytes();
  }
  void allocate(const Runtime& runtime) override;
  Tensor plan(Arena& arena, const Tensor& latents, Mode mode) override;
  void forward(const Pass& pass) override {
    run(FsqOp{.quantized = quantized_.value.rows(),
              .codes = flat_codes(),
              .first_bad_row = first_bad_row_,
              .latents = latents_.value.rows(),
              .grid = grid_,
              .counts = pass.training() ? counts_ : View<int32_t>()},
        pass.stream);
  }
  void backward(Stream stream) override {
    run(FsqBackwardOp{.d_latents = latents_.gradient.rows(),
                      .d_quantized = quantized_.gradient.rows(),
                      .latents = latents_.value.rows(),
                      .grid = grid_},
        stream);
  }
  void update(const UpdateContext& context, Stream stream) override;
  void decode(Stream stream) override {
    run(FsqDecodeOp{.quantized = quantized_.value.rows(), .codes = flat_codes(), .grid = grid_}, stream);
  }

  int64_t codebook_size() const override { return grid_.K; }
  // Else some dimensions start with all latents on one level, and many codes are never used.
  bool starts_centred() const override { return true; }
  bool looks_up() const override { return false; }
  View<int32_t> codes() const override { return codes_; }
  View<const float> codebook() const override { return codebook_; }
  View<const int32_t> first_bad_row() const override { return first_bad_row_; }
  View<const CodebookHealth> health() const override { return health_; }
  std::vector<StateTensor> training_state() override {
    return {{"quantize.ema.cluster_size", cluster_size_, {}}, {"quantize.age", {}, age_}};
  }

 private:
  void take_state(Slab& slab);
  View<int32_t> flat_codes() const { return {codes_.data, {codes_.size()}}; }

  const FsqGrid grid_;
  const float decay_, dead_threshold_;
  const Mode mode_;

  Slab slab_{"codebook state"};
  View<float> codebook_;      // (K, D): every code, decoded
  View<float> cluster_size_;  // (K), averaged counts
  View<float> health_scratch_;
  View<int32_t> first_bad_row_, counts_, age_;
  View<CodebookHealth> health_;
  Tensor latents_, quantized_;
  View<int32_t> codes_;
};

void FsqQuantizer::take_state(Slab& slab) {
  const int64_t K = grid_.K, D = grid_.D;
  codebook_ = slab.take<float>({K, D});
  first_bad_row_ = slab.take<int32_t>({1});
  if (mode_ == Mode::inference) return;
  cluster_size_ = slab.take<float>({K});
  counts_ = slab.take<int32_t>({K});
  age_ = slab.take<int32_t>({K});
  health_scratch_ = slab.take<float>({2 * K});
  health_ = slab.take<CodebookHealth>({1});
}

void FsqQuantizer::allocate(const Runtime& runtime) {
  take_state(slab_);
  slab_.allocate(runtime);
  take_state(slab_);
  const std::vector<float> codes = fsq_codebook(grid_), ones(size_t(grid_.K), 1.0f);
  runtime.upload(codebook_.data, codes.data(), codebook_.bytes(), runtime.compute());
  if (mode_ == Mode::training)
    runtime.upload(cluster_size_.data, ones.data(), cluster_size_.bytes(), runtime.compute());
  runtime.synchronize(runtime.compute());
}

Tensor FsqQuantizer::plan(Arena& arena, const Tensor& latents, Mode) {
  latents_ = latents;
  const View<float>& z = latents.value;
  quantized_.value = arena.take<float>({z[0], z[1], z[2], z[3]});
  quantized_.gradient = latents.gradient;  // the backward pass works in place
  codes_ = arena.take<int32_t>({z[0], z[1], z[2]});
  return quantized_;
}

void FsqQuantizer::update(const UpdateContext& context, Stream stream) {
  run(
      AverageCountsOp{
          .cluster_size = cluster_size_, .counts = counts_, .poisoned = context.poisoned, .decay = decay_},
      stream);
  run(CodebookHealthOp{.health = health_,
                       .age = age_,
                       .previous = codebook_,  // it never moves
                       .codebook = codebook_,
                       .counts = counts_,
                       .cluster_size = cluster_size_,
                       .poisoned = context.poisoned,
                       .threshold = dead_threshold_,
                       .scratch = health_scratch_},
      stream);
}

}  // namespace

extern const QuantizerEntry quantizer_fsq;
const QuantizerEntry quantizer_fsq{
    .name = "fsq",
    .idea = "each dimension rounded to one of quantizer.levels; no codebook to learn",
    .make = [](const QuantizerContext& context) -> std::unique_ptr<Quantizer> {
      return std::make_unique<FsqQuantizer>(context);
    }};

}  // namespace vqlab
