#include "dropout.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kGrain = 8192;  // a multiple of 4

void dropout_range(const DropoutOp& op, const DropoutRule& rule, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += 4) {
    const auto bits = random_bits(rule.key, uint64_t(first / 4));
    for (int64_t i = first; i < std::min(end, first + 4); ++i) {
      const bool kept = bits.v[i - first] >= rule.threshold;
      op.output.data[i] = kept ? op.input.data[i] * rule.scale : 0.0f;
    }
  }
}

}  // namespace

void DropoutOp::check() const {
  VQ_REQUIRE(same_shape(output, input), "dropout: output {} and input {} differ", output.shape(),
             input.shape());
  VQ_REQUIRE(state.size() == 1, "dropout: state {} is not one element", state.shape());
  VQ_REQUIRE(probability >= 0.0f && probability < 1.0f, "dropout: probability {} is not in [0, 1)",
             probability);
  VQ_REQUIRE(tensor < 1u << 24, "dropout: tensor {} is not below 2^24", tensor);
}

void run_cpu(const DropoutOp& op) {
  const DropoutRule rule = dropout_rule(op.state.data[0].step, op.probability, op.seed, op.tensor);
  parallel_ranges(op.output.size(), kGrain,
                  [&](int64_t begin, int64_t end) { dropout_range(op, rule, begin, end); });
}

}  // namespace vqlab
