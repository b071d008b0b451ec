// The head that recognises: on the quantized latents of an image, trained with the net or alone.
#pragma once

#include "config.hpp"
#include "layers.hpp"

namespace vqlab {

// Dropout, linear to classifier.hidden, ReLU, dropout, linear to the classes (without the first three if
// hidden is 0), and softmax cross-entropy behind them. A linear layer is a 1x1 convolution of an image of one
// pixel. Declares classifier.linear1 and classifier.linear2.
class Classifier {
 public:
  // `features`: elements of an image's latents.
  Classifier(ParameterStore& parameters, const Config& config, int64_t features, Precision precision);

  // As Layer::plan, of latents (B, h, w, D). Training writes the gradient of the latents into their own if
  // `alone`, else backward() adds to it.
  void plan(Arena& arena, const Tensor& latents, Mode mode, bool alone);
  void forward(const Pass& pass) { layers_.forward(pass); }
  // loss() and correct() from the labels; in training also the gradient.
  void measure_loss(const Pass& pass);
  void backward(Stream stream);
  void list_convolutions(std::vector<LayerConvolution>& list) { layers_.list_convolutions(list); }

  View<int32_t> labels() const { return labels_; }  // (B), filled before; -1: not labelled
  View<const float> loss() const { return loss_; }  // (1), weighted, the mean over the labelled images
  View<const int32_t> correct() const { return correct_; }            // (B): 1, 0, or -1 without a label
  View<const float> probabilities() const { return probabilities_; }  // (B, classes)

 private:
  const int64_t features_, classes_;
  const float label_smoothing_, weight_;
  const bool mixup_;
  bool alone_ = true;
  Sequential layers_;
  Tensor latents_, input_, logits_;
  View<int32_t> labels_, correct_;
  View<float> loss_, probabilities_;
  View<std::byte> scratch_;
};

}  // namespace vqlab
