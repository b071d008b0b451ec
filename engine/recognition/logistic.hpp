// Multinomial logistic regression: the linear probe.
#pragma once

#include "features.hpp"

namespace vqlab {

// What features are divided by, so that each has the mean 0 and the variance 1 over the training images.
struct Standardiser {
  std::vector<float> mean, scale;  // (dims); scale = 1 / standard deviation, 0 for a constant feature

  explicit Standardiser(const FeatureMatrix& training);
  Standardiser(std::vector<float> means, std::vector<float> scales)
      : mean(std::move(means)), scale(std::move(scales)) {}
  void apply(FeatureMatrix& matrix) const;
};

// weight (classes, dims), then bias (classes).
struct LinearModel {
  int64_t classes = 0, dims = 0;
  std::vector<float> values;

  LinearModel(int64_t class_count, int64_t dim_count)
      : classes(class_count), dims(dim_count), values(size_t(class_count * (dim_count + 1)), 0.0f) {}
};

// Rows of features on the device, with what a linear model needs to be fitted to them. The products are those
// of a 1x1 convolution, in fp32.
class LogisticProblem {
 public:
  LogisticProblem(const Runtime& runtime, const FeatureMatrix& features, int64_t classes);

  // Mean cross-entropy over the rows with a label (>= 0), and its gradient (of model.values' size).
  double loss(const LinearModel& model, const std::vector<int32_t>& labels, std::vector<float>& gradient);
  // (rows, classes).
  std::vector<float> logits(const LinearModel& model);
  // (dims, dims): the mean of the outer products of the rows with themselves.
  std::vector<float> second_moments() const;

  int64_t rows() const { return rows_; }
  int64_t classes() const { return classes_; }
  int64_t dims() const { return dims_; }

 private:
  void forward(const LinearModel& model);

  const Runtime& runtime_;
  const int64_t rows_, dims_, classes_, padded_rows_;
  Slab slab_{"logistic regression"};
  View<float> features_, weight_, bias_, logits_, d_logits_, d_weight_, d_bias_, loss_;
  View<int32_t> labels_, correct_;
  View<std::byte> scratch_;
};

// Minimises loss + l2 / 2 |weight|^2 by L-BFGS (Liu and Nocedal 1989; libLBFGS) from the given model, at most
// `iterations` of it. With the second moments of the features it walks in variables in which the objective is
// nearly round: a Cholesky factor, and a fifth of the iterations.
void fit_logistic(LogisticProblem& problem, const std::vector<int32_t>& labels, double l2, LinearModel& model,
                  int iterations = 100, const std::vector<float>& second_moments = {});

// The class of each row, the lowest of several.
std::vector<int32_t> largest_logits(const std::vector<float>& logits, int64_t classes);

// Chooses l2 by the accuracy on rows that were left out of the fit, then fits all labelled rows of
// `features`, which are standardised. Up to 2,000 labels: among nine powers of sqrt(10) from 10 down, by five
// folds in turn. Above: among five powers of 10 from 0.1 down, by a tenth of the rows, until one is no better
// than the one before. Folds are keyed by `seed`.
struct LogisticFit {
  LinearModel model;
  double l2;
  double held_out_accuracy;
};
LogisticFit fit_with_chosen_l2(const Runtime& runtime, const FeatureMatrix& features,
                               const std::vector<int32_t>& labels, int64_t classes, uint64_t seed);

}  // namespace vqlab
