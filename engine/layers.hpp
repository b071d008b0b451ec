// The layers: Conv, ConvTranspose, BatchNorm, ReLU, Dropout, Residual, Sequential.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/conv/conv2d.hpp"
#include "layer.hpp"
#include "params.hpp"

namespace vqlab {

// Convolution or transposed convolution with bias, followed by a ReLU if asked. Weights and bias start
// uniform in
// +-1 / sqrt(fan in), torch's default. Declares `name`.weight and `name`.bias.
class Conv : public Layer {
 public:
  Conv(ParameterStore& parameters, const std::string& name, const ConvGeometry& geometry,
       int64_t input_channels, int64_t output_channels, Activation activation,
       Precision precision = Precision::fp32);
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;
  void list_convolutions(std::vector<LayerConvolution>& list) override;
  // On the GPU the output, which is an image, gets padded channels.
  void pad_output_channels() { pads_output_ = true; }

 private:
  ParameterStore& parameters_;
  const std::string name_;
  ConvGeometry geometry_;
  int64_t output_channels_;
  Activation activation_;
  Precision precision_;
  // By the rule, until someone chooses through list_convolutions().
  ConvChoice forward_choice_, backward_choice_, weight_choice_;
  bool pads_output_ = false;
  ParameterStore::Id weight_, bias_;
  Tensor input_, output_;
  View<std::byte> scratch_;
};

// Conv with a transposed geometry: the upsampling layer of the decoder.
class ConvTranspose : public Conv {
 public:
  ConvTranspose(ParameterStore& parameters, const std::string& name, ConvGeometry geometry,
                int64_t input_channels, int64_t output_channels, Activation activation,
                Precision precision = Precision::fp32);
};

// Batch normalisation over (B, H, W), with a ReLU behind it if asked (Ioffe and Szegedy 2015). A training
// pass uses the batch's statistics, an evaluation the running averages (momentum 0.1, as torch's). Declares
// `name`.weight and .bias, and the buffers `name`.running_mean and .running_var.
class BatchNorm : public Layer {
 public:
  BatchNorm(ParameterStore& parameters, const std::string& name, int64_t channels, Activation activation);
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;
  void update(const View<const int32_t>& poisoned, Stream stream) override;

 private:
  ParameterStore& parameters_;
  const Activation activation_;
  const ParameterStore::Id weight_, bias_, running_mean_, running_variance_;
  Tensor input_, output_;
  View<float> mean_, variance_;  // (C), of the batch
  View<std::byte> scratch_;
};

// Drops elements with a probability and scales the others by its complement's inverse (Srivastava et al.
// 2014); which ones is a function of (seed, step, `number`). An evaluation passes all.
class Dropout : public Layer {
 public:
  Dropout(double probability, uint64_t seed, uint32_t number)
      : probability_(float(probability)), seed_(seed), number_(number) {}
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;

 private:
  const float probability_;
  const uint64_t seed_;
  const uint32_t number_;
  View<const StepState> step_;  // of the last training pass
  Tensor input_, output_;
};

// In place: its output is its input's memory. The layer before it must not need its output in backward.
class ReLU : public Layer {
 public:
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;

 private:
  Tensor tensor_;
};

class Sequential : public Layer {
 public:
  // Appends a layer and returns it.
  template <class L, class... Args>
  L& add(Args&&... args) {
    auto layer = std::make_unique<L>(std::forward<Args>(args)...);
    L& reference = *layer;
    layers_.push_back(std::move(layer));
    return reference;
  }
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;
  void list_convolutions(std::vector<LayerConvolution>& list) override;
  void update(const View<const int32_t>& poisoned, Stream stream) override;

 private:
  std::vector<std::unique_ptr<Layer>> layers_;
};

// x + conv1x1(relu(conv3x3(relu(x)))), each convolution followed by a BatchNorm if asked (He et al. 2016, the
// pre-activation form). Declares `name`.conv1 and .conv2, and .norm1 and .norm2.
class Residual : public Layer {
 public:
  Residual(ParameterStore& parameters, const std::string& name, int64_t channels, int64_t hidden,
           Precision precision = Precision::fp32, bool normalised = false);
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(const Pass& pass) override;
  void backward(Stream stream) override;
  void list_convolutions(std::vector<LayerConvolution>& list) override { branch_.list_convolutions(list); }
  void update(const View<const int32_t>& poisoned, Stream stream) override {
    branch_.update(poisoned, stream);
  }

 private:
  Sequential branch_;
  Tensor input_, activated_, output_;
};

// A convolution and what follows it: its activation, or a BatchNorm with that activation.
void add_conv(Sequential& layers, ParameterStore& parameters, const std::string& name,
              const std::string& norm_name, const ConvGeometry& geometry, int64_t input_channels,
              int64_t output_channels, Activation activation, Precision precision, bool normalised);

}  // namespace vqlab
