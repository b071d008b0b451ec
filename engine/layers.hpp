// The layers: Conv, ConvTranspose, ReLU, Residual, Sequential.
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
  void forward(Stream stream) override;
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

// In place: its output is its input's memory. The layer before it must not need its output in backward.
class ReLU : public Layer {
 public:
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(Stream stream) override;
  void backward(Stream stream) override;

 private:
  Tensor tensor_;
};

// x + conv1x1(relu(conv3x3(relu(x)))) (He et al. 2016, the pre-activation form without normalisation).
// Declares `name`.conv1 and `name`.conv2.
class Residual : public Layer {
 public:
  Residual(ParameterStore& parameters, const std::string& name, int64_t channels, int64_t hidden,
           Precision precision = Precision::fp32);
  Tensor plan(Arena& arena, const Tensor& input, Mode mode) override;
  void forward(Stream stream) override;
  void backward(Stream stream) override;
  void list_convolutions(std::vector<LayerConvolution>& list) override;

 private:
  Conv conv1_, conv2_;
  Tensor input_, activated_, output_;
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
  void forward(Stream stream) override;
  void backward(Stream stream) override;
  void list_convolutions(std::vector<LayerConvolution>& list) override;

 private:
  std::vector<std::unique_ptr<Layer>> layers_;
};

}  // namespace vqlab
