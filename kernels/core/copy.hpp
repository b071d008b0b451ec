// output = input, on the device.
#pragma once

#include "op.hpp"

namespace vqlab {

struct CopyOp {
  View<float> output;       // any shape; does not overlap input
  View<const float> input;  // same number of elements
  void check() const;       // throws Error(failed) if the sizes differ
};

void run_cpu(const CopyOp& op);
void run_cuda(const CopyOp& op, Stream stream);

}  // namespace vqlab
