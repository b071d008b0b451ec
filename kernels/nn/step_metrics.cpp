#include "step_metrics.hpp"

namespace vqlab {

void RecordStepOp::check() const {
  VQ_REQUIRE(ring.size() >= 1 && state.size() == 1 && reconstruction.size() == 1 && error.size() == 1 &&
                 squared_norm.size() == 1 && poisoned.size() == 1,
             "record step: an operand of one element is missing, or the ring {} is empty", ring.shape());
  VQ_REQUIRE((!distance || distance.size() == 1) && (!first_bad_row || first_bad_row.size() == 1) &&
                 (!replaced || replaced.size() == 1) && (!health || health.size() == 1) &&
                 (!classification || classification.size() == 1),
             "record step: distance {}, first_bad_row {}, replaced {}, health {} or classification {} is not "
             "one element",
             distance.shape(), first_bad_row.shape(), replaced.shape(), health.shape(),
             classification.shape());
}

void run_cpu(const RecordStepOp& op) {
  const StepState& state = op.state.data[0];
  StepMetrics metrics{.step = state.step,
                      .learning_rate = state.learning_rate,
                      .reconstruction = op.reconstruction.data[0],
                      .error = op.error.data[0],
                      .squared_norm = op.squared_norm.data[0],
                      .poisoned = op.poisoned.data[0]};
  if (op.classification) metrics.classification = op.classification.data[0];
  if (op.distance) metrics.distance = op.distance.data[0];
  if (op.first_bad_row) metrics.first_bad_row = op.first_bad_row.data[0];
  if (op.replaced) metrics.replaced = op.replaced.data[0];
  if (op.health) metrics.health = op.health.data[0];
  op.ring.data[state.step % op.ring.size()] = metrics;
}

}  // namespace vqlab
