#include "copy.hpp"

#include <algorithm>
#include <cstring>

namespace vqlab {

void CopyOp::check() const {
  VQ_REQUIRE(output.size() == input.size(), "copy: output {} and input {} differ in size", output.shape(),
             input.shape());
}

void SwapOp::check() const {
  VQ_REQUIRE(a.size() == b.size(), "swap: a {} and b {} differ in size", a.shape(), b.shape());
}

void run_cpu(const CopyOp& op) { std::memcpy(op.output.data, op.input.data, size_t(op.input.bytes())); }

void run_cpu(const SwapOp& op) { std::swap_ranges(op.a.data, op.a.data + op.a.size(), op.b.data); }

}  // namespace vqlab
