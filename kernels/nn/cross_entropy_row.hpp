// The arithmetic of one row of a cross-entropy, on every device; see cross_entropy.hpp.
#pragma once

#include "../core/elementary.hpp"

namespace vqlab {

inline constexpr int kClassLanes = 32;

// What a row is compared with.
struct RowTarget {
  int label = -1, mirrored = -1;  // classes; where there is none the share is 0
  double share = 0.0, mirrored_share = 0.0;
  VQ_HOST_DEVICE double total() const { return share + mirrored_share; }
};

VQ_HOST_DEVICE inline bool is_class(int label, int64_t C) { return label >= 0 && label < C; }

VQ_HOST_DEVICE inline RowTarget row_target(const int32_t* labels, int64_t b, int64_t B, int64_t C,
                                           float mix) {
  const int label = labels[b], mirrored = labels[B - 1 - b];
  return {.label = label,
          .mirrored = mirrored,
          .share = is_class(label, C) ? double(mix) : 0.0,
          .mirrored_share = is_class(mirrored, C) ? 1.0 - double(mix) : 0.0};
}

// A class and its logit, or nothing yet.
struct Largest {
  float logit = -__builtin_inff();
  int index = -1;
};

// The larger of two, the first class of two that are equal. NaN is as small as -infinity.
VQ_HOST_DEVICE inline Largest larger(const Largest& a, const Largest& b) {
  if (a.index < 0) return b;
  if (b.index < 0) return a;
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.index < b.index ? a : b;
}

VQ_HOST_DEVICE inline Largest largest_of(float logit, int index) {
  return {logit != logit ? -__builtin_inff() : logit, index};
}

// -sum_c t[c] log p[c] = total log(sum e^y) - sum_c t[c] y[c], where y is a logit less the largest and `sum`
// that of all y. Shares of 0 are left out, so that an infinite logit without a share does no harm.
VQ_HOST_DEVICE inline double row_loss(const RowTarget& target, const float* logits, double largest,
                                      double exponentials, double sum, int64_t C, double smoothing) {
  double loss = target.total() * portable_log(exponentials);
  const double sharp = 1.0 - smoothing;
  if (target.share > 0.0) loss -= sharp * target.share * (double(logits[target.label]) - largest);
  if (target.mirrored_share > 0.0)
    loss -= sharp * target.mirrored_share * (double(logits[target.mirrored]) - largest);
  if (smoothing > 0.0) loss -= smoothing / double(C) * target.total() * sum;
  return loss;
}

// d loss / d logit of class c, before the mean: total p - t.
VQ_HOST_DEVICE inline double row_gradient(const RowTarget& target, double probability, int c, int64_t C,
                                          double smoothing) {
  const double sharp = 1.0 - smoothing;
  double wanted = smoothing / double(C) * target.total();
  if (c == target.label) wanted += sharp * target.share;
  if (c == target.mirrored) wanted += sharp * target.mirrored_share;
  return target.total() * probability - wanted;
}

}  // namespace vqlab
