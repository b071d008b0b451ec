// Copies and exchanges within one memory.
#pragma once

#include "op.hpp"

namespace vqlab {

// output = input.
struct CopyOp {
  View<float> output;       // any shape; does not overlap input
  View<const float> input;  // same number of elements
  void check() const;       // both throw Error(failed) if the sizes differ
};

// a and b change places, bit for bit.
struct SwapOp {
  View<float> a;  // any shape
  View<float> b;  // same number of elements; does not overlap a
  void check() const;
  OpCost cost() const { return {.bytes = 2.0 * operand_bytes(*this)}; }  // read and written
};

void run_cpu(const CopyOp& op);
void run_cuda(const CopyOp& op, Stream stream);
void run_cpu(const SwapOp& op);
void run_cuda(const SwapOp& op, Stream stream);

}  // namespace vqlab
