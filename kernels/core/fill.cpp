#include "fill.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace vqlab {

void FillOp::check() const {
  VQ_REQUIRE(output.data != nullptr || output.size() == 0, "fill: output {} has no memory", output.shape());
}

void run_cpu(const FillOp& op) {
  constexpr int64_t kGrain = 1 << 16;
  parallel_ranges(op.output.size(), kGrain, [&](int64_t begin, int64_t end) {
    std::fill(op.output.data + begin, op.output.data + end, op.value);
  });
}

}  // namespace vqlab
