#include "cross_entropy.hpp"

#include "../core/parallel.hpp"
#include "../core/tree_sum.hpp"
#include "cross_entropy_row.hpp"

namespace vqlab {
namespace {

constexpr int64_t kGrain = 16;  // rows

// The sum of term(c) over all classes, in the order of cross_entropy.hpp.
template <class Term>
double class_sum(int64_t C, const Term& term) {
  double lane[kClassLanes] = {};
  for (int64_t c = 0; c < C; ++c) lane[c % kClassLanes] += term(c);
  for (int half = kClassLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

// Returns the row's loss.
float cross_entropy_row(const CrossEntropyOp& op, int64_t b, float mix, double gradient_scale) {
  const int64_t C = op.logits[1];
  const float* logits = op.logits.data + b * C;
  const RowTarget target = row_target(op.labels.data, b, op.logits[0], C, mix);
  Largest found;
  for (int64_t c = 0; c < C; ++c) found = larger(found, largest_of(logits[c], int(c)));
  op.correct.data[b] = is_class(target.label, C) ? found.index == target.label : -1;
  const double largest = found.logit;
  const auto exponential = [=](int64_t c) { return portable_exp(double(logits[c]) - largest); };
  const double sum = class_sum(C, exponential);
  if (op.d_logits || op.probabilities)
    for (int64_t c = 0; c < C; ++c) {
      const double p = exponential(c) / sum;
      if (op.probabilities) op.probabilities.data[b * C + c] = float(p);
      if (op.d_logits)
        op.d_logits.data[b * C + c] =
            target.total() > 0.0
                ? float(gradient_scale * row_gradient(target, p, int(c), C, double(op.label_smoothing)))
                : 0.0f;
    }
  if (target.total() == 0.0) return 0.0f;
  const double logit_sum =
      op.label_smoothing > 0.0f ? class_sum(C, [=](int64_t c) { return double(logits[c]) - largest; }) : 0.0;
  return float(row_loss(target, logits, largest, sum, logit_sum, C, double(op.label_smoothing)));
}

}  // namespace

void CrossEntropyOp::check() const {
  VQ_REQUIRE(logits.rank == 2 && logits.size() > 0 && (!d_logits || same_shape(logits, d_logits)) &&
                 (!probabilities || same_shape(logits, probabilities)),
             "cross-entropy: d_logits {}, probabilities {} and logits {} differ, or are not rows",
             d_logits.shape(), probabilities.shape(), logits.shape());
  VQ_REQUIRE(logits[0] <= int64_t(1) << 20 && logits[1] < int64_t(1) << 30,
             "cross-entropy: logits {} are too many", logits.shape());
  VQ_REQUIRE(loss.size() == 1 && correct.size() == logits[0] && labels.size() == logits[0] &&
                 (!state || state.size() == 1),
             "cross-entropy: loss {}, correct {}, labels {} or state {} has the wrong size for logits {}",
             loss.shape(), correct.shape(), labels.shape(), state.shape(), logits.shape());
  VQ_REQUIRE(label_smoothing >= 0.0f && label_smoothing < 1.0f && weight > 0.0f,
             "cross-entropy: label_smoothing {} or weight {} is out of range", label_smoothing, weight);
  require_scratch("cross-entropy", scratch, cross_entropy_scratch_bytes(logits[0]));
  VQ_REQUIRE(reinterpret_cast<uintptr_t>(scratch.data) % alignof(int64_t) == 0,
             "cross-entropy: the scratch is not aligned to 8 bytes");
}

// The number of labelled rows, then the loss of each row.
int64_t cross_entropy_scratch_bytes(int64_t rows) {
  return int64_t(sizeof(int64_t)) + rows * int64_t(sizeof(float));
}

void run_cpu(const CrossEntropyOp& op) {
  const int64_t B = op.logits[0], C = op.logits[1];
  int64_t labelled = 0;
  for (int64_t b = 0; b < B; ++b) labelled += is_class(op.labels.data[b], C);
  const float mix = op.state ? op.state.data[0].mix : 1.0f;
  const double gradient_scale = labelled > 0 ? double(op.weight) / double(labelled) : 0.0;
  float* const losses = reinterpret_cast<float*>(op.scratch.data + sizeof(int64_t));
  parallel_ranges(B, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) losses[b] = cross_entropy_row(op, b, mix, gradient_scale);
  });
  op.loss.data[0] = labelled > 0 ? op.weight * (finish_sum(losses, B) / float(labelled)) : 0.0f;
}

}  // namespace vqlab
