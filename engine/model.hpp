// The network by configuration: encoder CNN, 1x1 convolution to the latents, quantizer, and behind it a
// decoder CNN (the net of DeepMind's VQ-VAE notebook; van den Oord et al. 2017, section 4.1), a classifier,
// or both, each with its loss.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "classifier.hpp"
#include "conv_book.hpp"
#include "kernels/nn/image_input.hpp"
#include "kernels/nn/losses.hpp"
#include "layers.hpp"
#include "quantizer.hpp"

namespace vqlab {

struct ImageShape {
  int64_t height, width, channels;  // pixels; channels 1 or 3
};

class Model {
 public:
  // Declares everything and allocates nothing. `batch` images a pass; `images_per_epoch` bounds the latents
  // that k-means waits for.
  Model(const Config& config, const ImageShape& shape, int64_t batch, int64_t images_per_epoch, Mode mode);

  // Bytes that allocate() will take, by name.
  std::vector<std::pair<std::string, int64_t>> memory_budget(Device device);
  // The convolutions of a step on a device, in the order of the layers. Before allocate() no device is
  // needed.
  std::vector<LayerConvolution> convolutions(Device device);
  // All memory, once, with initial weights drawn from config.seed in training.
  void allocate(const Runtime& runtime);

  // One pass, in order. images() is filled before, and with a classifier its labels.
  void load_images(const Pass& pass);
  // Instead, from a set (n, height, width, channels) on the device: its images at `places` (B).
  void load_images(const Pass& pass, const View<const uint8_t>& set, const View<const int32_t>& places);
  void encode(const Pass& pass);
  void quantize(const Pass& pass) { quantizer_->forward(pass); }
  void decode(const Pass& pass) {
    decode_hidden(pass);
    upsample(pass);
  }
  void decode_hidden(const Pass& pass);  // the decoder, up to its first upsampling
  void upsample(const Pass& pass);
  void classify(const Pass& pass);
  // For inference, after quantize: waits for the device and throws Error(failed), naming the image, if a
  // latent is not finite. `first` is the place of the batch's first image.
  void require_finite_latents(const Runtime& runtime, int64_t first) const;
  // loss and error of the reconstruction against the input, without the padding, and the classifier's; in
  // training also their gradients. 0 of a part that the net does not have.
  void measure_loss(const Pass& pass);
  void backward(Stream stream);
  // After the optimiser: averages of the layers, and of these and the weights. None in a poisoned step.
  void update(const View<const int32_t>& poisoned, const View<const OptimizerState>& optimizer,
              Stream stream);
  // The averages and what is in training change places, if there are averages: around an evaluation.
  void swap_averages(Stream stream);

  // 1 / variance of the training pixels in [0, 1], for the loss mse_over_variance.
  void set_variance(double variance);

  const Config& config() const { return config_; }
  const ImageShape& shape() const { return shape_; }
  int64_t batch() const { return batch_; }
  View<uint8_t> images() const { return images_; }  // (B, height, width, channels), on the device
  // (B, H, W, C), sides padded to the downsampling, on the GPU also channels (padded_channels())
  View<const float> input() const { return input_.value; }
  // What the next upload to images() must wait for.
  const Event& images_read() const { return images_read_; }
  View<const float> latents() const { return latents_.value; }  // (B, h, w, D)
  // What the 1x1 convolution to the latents reads, (B, h, w, hidden), and the decoder's map before its first
  // upsampling, a function of the quantized latents alone, of that shape.
  View<const float> encoder_hidden() const { return encoder_hidden_.value; }
  View<const float> decoder_hidden() const { return decoder_hidden_.value; }
  View<const float> quantized() const { return quantized_.value; }            // as latents()
  View<const float> reconstruction() const { return reconstruction_.value; }  // as input()
  View<const float> loss() const { return loss_; }                            // (1), scaled, as trained
  View<const float> error() const { return error_; }  // (1), mean squared or absolute error
  View<const float> squared_error() const {
    return squared_error_;
  }  // (B), sum over the pixels of each image
  int64_t code_height() const { return padded(shape_.height) / config_.model.downsampling; }
  int64_t code_width() const { return padded(shape_.width) / config_.model.downsampling; }
  bool has_decoder() const { return config_.loss.reconstruction_weight > 0.0; }
  Classifier* classifier() { return classifier_.get(); }  // or null
  const Classifier* classifier() const { return classifier_.get(); }
  Quantizer& quantizer() { return *quantizer_; }
  const Quantizer& quantizer() const { return *quantizer_; }
  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }
  // Of the GPU that the run last was on, kept for its checkpoints.
  ConvBook& convolution_book() { return convolution_book_; }
  const ConvBook& convolution_book() const { return convolution_book_; }
  // The variants that the quantizer runs, kept for the run's checkpoints.
  void use_kernels(const KernelChoice& choice, const std::string& device_name);
  const RunKernels& kernels() const { return kernels_; }

 private:
  void build_encoder();
  void build_decoder();
  void plan_encoder(Arena& arena);
  void plan_heads(Arena& arena, const Tensor& quantized);
  void plan(Arena& arena);
  int64_t padded(int64_t side) const;

  const Config config_;
  const ImageShape shape_;
  const int64_t batch_;
  const Mode mode_;
  const Precision precision_;
  float loss_scale_ = 1.0f;
  ParameterStore parameters_;
  Sequential encoder_, to_latents_, decoder_, upsampling_;
  std::unique_ptr<Quantizer> quantizer_;
  std::unique_ptr<Classifier> classifier_;
  ConvBook convolution_book_;
  RunKernels kernels_;
  Arena arena_{Device::cpu};
  Event images_read_;
  View<uint8_t> images_;
  Tensor input_, encoder_hidden_, latents_, quantized_, decoder_hidden_, reconstruction_;
  View<float> loss_, error_, squared_error_, block_sums_;
};

// A batch of the net's images on the host, (B, H, W, C): sides still padded, channels not, pixels minus 0.5.
struct HostImages {
  std::vector<float> values;
  int64_t height, width, channels;
  View<const float> image(int64_t i) const {  // (H, W, C)
    return {values.data() + i * height * width * channels, {height, width, channels}};
  }
};

// Of a model's input() or reconstruction(). Waits for the device.
HostImages images_to_host(const View<const float>& images, int64_t channels, const Runtime& runtime);

// The largest training batch whose model fits into `bytes`; 0 if not even one image does.
int64_t largest_batch(const Config& config, const ImageShape& shape, int64_t images_per_epoch, Device device,
                      int64_t bytes);

}  // namespace vqlab
