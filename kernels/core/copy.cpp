#include "copy.hpp"

#include <cstring>

namespace vqlab {

void CopyOp::check() const {
  VQ_REQUIRE(output.size() == input.size(), "copy: output {} and input {} differ in size", output.shape(),
             input.shape());
}

void run_cpu(const CopyOp& op) { std::memcpy(op.output.data, op.input.data, size_t(op.input.bytes())); }

}  // namespace vqlab
