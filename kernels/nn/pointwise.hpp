// Elementwise ops of the network body.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// output = max(input, 0); NaN stays NaN.
struct ReluOp {
  View<float> output;       // any shape; may alias input
  View<const float> input;  // same shape
  void check() const;       // these throw Error(failed) on shapes that differ
};

// d_input = d_output where output > 0, else 0: the gradient at 0 is 0, as in torch.
struct ReluBackwardOp {
  View<float> d_input;         // any shape; may alias d_output
  View<const float> d_output;  // same shape
  View<const float> output;    // same shape, the value that the ReLU produced
  void check() const;
};

// output = a + b: the skip connection of a residual block (He et al. 2015), and the sum of its two gradients,
// in front of a ReLU if there is one: 0 where `rectified` is not positive, as ReluBackwardOp makes it.
struct AddOp {
  View<float> output;                // any shape; may alias a or b
  View<const float> a;               // same shape
  View<const float> b;               // same shape
  View<const float> rectified = {};  // same shape, the value that the ReLU produced; or absent
  void check() const;
};

void run_cpu(const ReluOp& op);
void run_cuda(const ReluOp& op, Stream stream);
void run_cpu(const ReluBackwardOp& op);
void run_cuda(const ReluBackwardOp& op, Stream stream);
void run_cpu(const AddOp& op);
void run_cuda(const AddOp& op, Stream stream);

}  // namespace vqlab
