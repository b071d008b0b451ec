// The seam of the network body. Backward is written by hand for each layer: there is no tape.
#pragma once

#include <string>
#include <vector>

#include "kernels/conv/conv_choice.hpp"
#include "kernels/core/step_state.hpp"
#include "memory.hpp"

namespace vqlab {

enum class Mode { training, inference };

// One pass of a batch through the net. In a training step its scalars key what is random; without them it is
// an evaluation: no augmentation, no dropout, normalisation by the averages of training.
struct Pass {
  Pass(Stream where) : stream(where) {}  // NOLINT: implicit on purpose, an evaluation
  Pass(Stream where, const View<const StepState>& of) : stream(where), step(of) {}
  bool training() const { return bool(step); }

  Stream stream;
  View<const StepState> step;  // (1), on the device; absent in an evaluation
};

// An activation (B, H, W, C) and the gradient of the loss with respect to it. The gradient is absent in
// inference, and of the input image, which needs none. Of a rectified value, which a ReLU gave, it is the
// gradient in front of the ReLU: who writes it also undoes the ReLU, which a convolution can do on the way.
struct Tensor {
  View<float> value, gradient;
  bool rectified = false;
};

// A convolution of a training step, as a library is asked for it.
struct LayerConvolution {
  std::string layer;    // "encoder.conv1"
  ConvProblem problem;  // with what the op wants done behind it
  bool masked;          // behind it the gradient of a ReLU is undone
  ConvChoice* choice;   // what the layer's op carries; null: no library computes it
};

class Layer {
 public:
  virtual ~Layer() = default;

  // Takes the output (with its gradient in training) and the scratch from the arena, and remembers the views.
  // Runs once to measure and once to bind.
  virtual Tensor plan(Arena& arena, const Tensor& input, Mode mode) = 0;
  // output.value from input.value; keeps what backward needs in the arena.
  virtual void forward(const Pass& pass) = 0;
  // After a forward pass of training. From output.gradient: the parameter gradients, and input.gradient
  // unless it is absent. Both are overwritten; output.gradient may be changed too.
  virtual void backward(Stream stream) = 0;
  // After the optimiser: what a layer averages over the steps, unless `poisoned` (1) is set.
  virtual void update(const View<const int32_t>&, Stream) {}
  // Appends the convolutions of the shapes last planned: forward, backward data, backward weight.
  virtual void list_convolutions(std::vector<LayerConvolution>&) {}
};

}  // namespace vqlab
