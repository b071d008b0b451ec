// Setting memory to a value.
#pragma once

#include "op.hpp"

namespace vqlab {

// output[i] = value, bit for bit (NaN payloads and -0 too).
struct FillOp {
  View<float> output;  // any shape, also empty
  float value;

  // Throws Error(failed) on an output that has elements and no memory.
  void check() const;
};

void run_cpu(const FillOp& op);
void run_cuda(const FillOp& op, Stream stream);

// A kernel of this binary, to ask a device whether it can run what the binary holds.
const void* fill_kernel_cuda();

}  // namespace vqlab
