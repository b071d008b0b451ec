#include "begin_step.hpp"

#include <limits>

namespace vqlab {

void BeginStepOp::check() const {
  VQ_REQUIRE(state.size() == 1 && plan.size() >= 1,
             "begin step: state {} is not one element, or plan {} is empty", state.shape(), plan.shape());
  VQ_REQUIRE(!labels || (places && labels.size() == places.size()),
             "begin step: labels {} without places {} of that size", labels.shape(), places.shape());
  VQ_REQUIRE(!places || (images >= places.size() && images <= std::numeric_limits<int32_t>::max()),
             "begin step: a batch of {} from a set of {}", places.size(), images);
  VQ_REQUIRE(!set_labels || set_labels.size() == images, "begin step: {} labels of {} images",
             set_labels.size(), images);
}

void run_cpu(const BeginStepOp& op) {
  StepState& state = op.state.data[0];
  state = op.plan.data[(state.step + 1) % op.plan.size()];
  if (!op.places) return;
  const Permutation order = epoch_order(op.seed, state.epoch, op.images);
  for (int64_t b = 0; b < op.places.size(); ++b) {
    const auto place = int32_t(order(uint64_t(state.first_index + b)));
    op.places.data[b] = place;
    if (op.labels) op.labels.data[b] = op.set_labels ? op.set_labels.data[place] : -1;
  }
}

}  // namespace vqlab
