#include "logistic.hpp"

#include <lbfgs.h>

#include <Eigen/Cholesky>
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <span>

#include "kernels/conv/conv2d.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/nn/cross_entropy.hpp"

namespace vqlab {
namespace {

// A product of rows is a convolution of images of 64 pixels, so that its shards are long.
constexpr int64_t kSide = 8, kRowsPerImage = kSide * kSide;
constexpr ConvGeometry kPointwise{.kernel = 1};

View<float> as_images(const View<float>& rows) {
  return {rows.data, {rows[0] / kRowsPerImage, kSide, kSide, rows[1]}};
}

}  // namespace

Standardiser::Standardiser(const FeatureMatrix& training)
    : mean(size_t(training.dims)), scale(size_t(training.dims)) {
  const int64_t D = training.dims;
  const double n = double(training.rows);
  parallel_ranges(D, 16, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(size_t(end - begin)), squares(size_t(end - begin));
    for (int64_t i = 0; i < training.rows; ++i)
      for (int64_t d = begin; d < end; ++d) sum[size_t(d - begin)] += double(training.row(i)[d]);
    for (double& s : sum) s /= n;
    for (int64_t i = 0; i < training.rows; ++i)
      for (int64_t d = begin; d < end; ++d) {
        const double centred = double(training.row(i)[d]) - sum[size_t(d - begin)];
        squares[size_t(d - begin)] += centred * centred;
      }
    for (int64_t d = begin; d < end; ++d) {
      const double deviation = std::sqrt(squares[size_t(d - begin)] / n);
      mean[size_t(d)] = float(sum[size_t(d - begin)]);
      scale[size_t(d)] = deviation > 0.0 ? float(1.0 / deviation) : 0.0f;
    }
  });
}

void Standardiser::apply(FeatureMatrix& matrix) const {
  VQ_REQUIRE(matrix.dims == int64_t(mean.size()), "standardise: {} dimensions, and statistics of {}",
             matrix.dims, mean.size());
  parallel_ranges(matrix.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = matrix.values.data() + i * matrix.dims;
      for (size_t d = 0; d < mean.size(); ++d) row[d] = (row[d] - mean[d]) * scale[d];
    }
  });
}

LogisticProblem::LogisticProblem(const Runtime& runtime, const FeatureMatrix& features, int64_t classes)
    : runtime_(runtime),
      rows_(features.rows),
      dims_(features.dims),
      classes_(classes),
      padded_rows_((features.rows + kRowsPerImage - 1) / kRowsPerImage * kRowsPerImage) {
  const Device device = runtime.device();
  const View<float> shape(nullptr, {padded_rows_, dims_});
  if (!conv_supports(kPointwise, as_images(shape), classes))
    throw Error(ErrorKind::usage,
                fmt::format("{} rows of {} features are too many for one product", rows_, dims_),
                "use a feature with fewer dimensions, or fewer labels", "logistic");
  const auto plan = [&] {
    features_ = slab_.take<float>({padded_rows_, dims_});
    weight_ = slab_.take<float>({classes, 1, 1, dims_});
    bias_ = slab_.take<float>({classes});
    d_weight_ = slab_.take<float>({classes, 1, 1, dims_});
    d_bias_ = slab_.take<float>({classes});
    logits_ = slab_.take<float>({padded_rows_, classes});
    d_logits_ = slab_.take<float>({padded_rows_, classes});
    loss_ = slab_.take<float>({1});
    labels_ = slab_.take<int32_t>({padded_rows_});
    correct_ = slab_.take<int32_t>({padded_rows_});
    scratch_ =
        slab_.take<std::byte>({std::max(conv_scratch_bytes(device, kPointwise, as_images(shape), classes),
                                        cross_entropy_scratch_bytes(padded_rows_))});
  };
  plan();
  slab_.allocate(runtime);
  plan();
  runtime.upload(features_.data, features.values.data(), rows_ * dims_ * int64_t(sizeof(float)),
                 runtime.compute());
  runtime.synchronize(runtime.compute());
}

void LogisticProblem::forward(const LinearModel& model) {
  const Stream stream = runtime_.compute();
  runtime_.upload(weight_.data, model.values.data(), weight_.bytes(), stream);
  runtime_.upload(bias_.data, model.values.data() + weight_.size(), bias_.bytes(), stream);
  run(ConvForwardOp{.output = as_images(logits_),
                    .input = as_images(features_),
                    .weight = weight_,
                    .bias = bias_,
                    .geometry = kPointwise,
                    .activation = Activation::none,
                    .scratch = scratch_},
      stream);
}

double LogisticProblem::loss(const LinearModel& model, const std::vector<int32_t>& labels,
                             std::vector<float>& gradient) {
  const Stream stream = runtime_.compute();
  std::vector<int32_t> padded = labels;
  padded.resize(size_t(padded_rows_), -1);
  runtime_.upload(labels_.data, padded.data(), labels_.bytes(), stream);
  forward(model);
  run(CrossEntropyOp{.d_logits = d_logits_,
                     .loss = loss_,
                     .correct = correct_,
                     .probabilities = {},
                     .logits = logits_,
                     .labels = labels_,
                     .state = {},
                     .label_smoothing = 0.0f,
                     .weight = 1.0f,
                     .scratch = scratch_},
      stream);
  run(ConvBackwardWeightOp{.d_weight = d_weight_,
                           .d_bias = d_bias_,
                           .d_output = as_images(d_logits_),
                           .input = as_images(features_),
                           .geometry = kPointwise,
                           .scratch = scratch_},
      stream);
  gradient.resize(model.values.size());
  float loss = 0.0f;
  runtime_.download(gradient.data(), d_weight_.data, d_weight_.bytes(), stream);
  runtime_.download(gradient.data() + d_weight_.size(), d_bias_.data, d_bias_.bytes(), stream);
  runtime_.download(&loss, loss_.data, loss_.bytes(), stream);
  runtime_.synchronize(stream);
  return double(loss);
}

std::vector<float> LogisticProblem::logits(const LinearModel& model) {
  forward(model);
  return to_host(View<const float>(logits_.data, {rows_, classes_}), runtime_);
}

// X^T X is the weight gradient of a 1x1 convolution whose input and output gradient both are X.
std::vector<float> LogisticProblem::second_moments() const {
  Slab slab("second moments");
  View<float> products;
  View<std::byte> scratch;
  const auto plan = [&] {
    products = slab.take<float>({dims_, 1, 1, dims_});
    scratch = slab.take<std::byte>(
        {conv_scratch_bytes(runtime_.device(), kPointwise, as_images(features_), dims_)});
  };
  plan();
  slab.allocate(runtime_);
  plan();
  run(ConvBackwardWeightOp{.d_weight = products,
                           .d_bias = {},
                           .d_output = as_images(features_),
                           .input = as_images(features_),
                           .geometry = kPointwise,
                           .scratch = scratch},
      runtime_.compute());
  std::vector<float> moments = to_host(View<const float>(products.data, {dims_, dims_}), runtime_);
  for (float& moment : moments) moment /= float(rows_);
  return moments;
}

namespace {

using Matrix = Eigen::MatrixXd;  // column-major: (dims, classes) is the (classes, dims) of a LinearModel

// The variables L^T w of a class's weights w, with L L^T = kCurvature * second moments + l2 I: about the
// Hessian of the objective, whose exact p (1 - p) in place of kCurvature differs by row and class.
class RoundVariables {
 public:
  RoundVariables(const std::vector<float>& second_moments, double l2) {
    if (second_moments.empty()) return;
    constexpr double kCurvature = 0.05;
    const auto dims = Eigen::Index(std::lround(std::sqrt(double(second_moments.size()))));
    Matrix hessian = Eigen::Map<const Eigen::MatrixXf>(second_moments.data(), dims, dims).cast<double>();
    hessian *= kCurvature;
    hessian.diagonal().array() += l2;
    factor_.compute(hessian);
    given_ = factor_.info() == Eigen::Success;
  }
  void from_weights(Eigen::Ref<Matrix> weights) const {
    if (given_) weights = factor_.matrixU() * Matrix(weights);
  }
  void to_weights(Eigen::Ref<Matrix> variables) const {
    if (given_) factor_.matrixU().solveInPlace(variables);
  }
  void gradient_from_weights(Eigen::Ref<Matrix> gradient) const {
    if (given_) factor_.matrixL().solveInPlace(gradient);
  }

 private:
  Eigen::LLT<Matrix> factor_;
  bool given_ = false;  // false: the weights themselves
};

// What libLBFGS calls back with.
struct Objective {
  LogisticProblem& problem;
  const std::vector<int32_t>& labels;
  double l2;
  LinearModel& model;
  const RoundVariables& variables;
  std::vector<float> gradient{};

  void set_model(const double* x) {
    Matrix weights = Eigen::Map<const Matrix>(x, model.dims, model.classes);
    variables.to_weights(weights);
    const int64_t count = model.dims * model.classes;
    for (int64_t i = 0; i < count; ++i) model.values[size_t(i)] = float(weights.data()[i]);
    for (int64_t i = count; i < int64_t(model.values.size()); ++i) model.values[size_t(i)] = float(x[i]);
  }

  double operator()(const double* x, double* g, int n) {
    set_model(x);
    double value = problem.loss(model, labels, gradient);
    std::fill(std::copy(gradient.begin(), gradient.end(), g), g + n, 0.0);
    Eigen::Map<Matrix> of_weights(g, model.dims, model.classes);
    for (int64_t i = 0; i < of_weights.size(); ++i) {  // the bias is not drawn to 0
      const double weight = double(model.values[size_t(i)]);
      value += 0.5 * l2 * weight * weight;
      g[i] += l2 * weight;
    }
    variables.gradient_from_weights(of_weights);
    return value;
  }
};

double evaluate_objective(void* objective, const double* x, double* g, const int n, const double) {
  return (*static_cast<Objective*>(objective))(x, g, n);
}

double accuracy(const std::vector<float>& logits, int64_t classes, const std::vector<int32_t>& labels) {
  const std::vector<int32_t> found = largest_logits(logits, classes);
  int64_t correct = 0, labelled = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    labelled += labels[i] >= 0;
    correct += labels[i] >= 0 && found[i] == labels[i];
  }
  return labelled > 0 ? double(correct) / double(labelled) : 0.0;
}

}  // namespace

// A line search that can no longer improve the loss in fp32 ends the fit as well as its end does.
void fit_logistic(LogisticProblem& problem, const std::vector<int32_t>& labels, double l2, LinearModel& model,
                  int iterations, const std::vector<float>& second_moments) {
  // The library may be built for vectors: aligned, and a multiple of 8 long.
  const int n = int((model.values.size() + 7) / 8 * 8);
  const std::unique_ptr<double, decltype(&lbfgs_free)> memory(lbfgs_malloc(n), &lbfgs_free);
  if (!memory)
    throw Error(ErrorKind::resources, "no memory for the variables of L-BFGS",
                "use a feature with fewer dimensions", "logistic");
  const std::span<double> x(memory.get(), size_t(n));
  std::fill(std::copy(model.values.begin(), model.values.end(), x.begin()), x.end(), 0.0);
  const RoundVariables variables(second_moments, l2);
  variables.from_weights(Eigen::Map<Matrix>(x.data(), model.dims, model.classes));
  Objective objective{.problem = problem, .labels = labels, .l2 = l2, .model = model, .variables = variables};
  lbfgs_parameter_t parameters;
  lbfgs_parameter_init(&parameters);
  parameters.max_iterations = iterations;
  parameters.m = 10;
  parameters.epsilon = 1e-4;
  parameters.past = 5;
  parameters.delta = 1e-4;
  double value = 0.0;
  const int status = lbfgs(n, x.data(), &value, evaluate_objective, nullptr, &objective, &parameters);
  constexpr std::array kEnds = {int(LBFGS_SUCCESS),
                                int(LBFGS_STOP),
                                int(LBFGS_ALREADY_MINIMIZED),
                                int(LBFGSERR_MAXIMUMITERATION),
                                int(LBFGSERR_ROUNDING_ERROR),
                                int(LBFGSERR_MINIMUMSTEP),
                                int(LBFGSERR_MAXIMUMLINESEARCH),
                                int(LBFGSERR_WIDTHTOOSMALL)};
  VQ_REQUIRE(std::find(kEnds.begin(), kEnds.end(), status) != kEnds.end(),
             "L-BFGS ended with status {}, loss {}", status, value);
  objective.set_model(x.data());
}

std::vector<int32_t> largest_logits(const std::vector<float>& logits, int64_t classes) {
  std::vector<int32_t> found(logits.size() / size_t(classes));
  for (size_t i = 0; i < found.size(); ++i) {
    const float* row = logits.data() + i * size_t(classes);
    found[i] = int32_t(std::max_element(row, row + classes) - row);
  }
  return found;
}

namespace {

// first, first / ratio, ...
std::vector<double> powers_from(double first, double ratio, int count) {
  std::vector<double> powers;
  for (int i = 0; i < count; ++i) powers.push_back(first * std::pow(ratio, -double(i)));
  return powers;
}

}  // namespace

LogisticFit fit_with_chosen_l2(const Runtime& runtime, const FeatureMatrix& features,
                               const std::vector<int32_t>& labels, int64_t classes, uint64_t seed) {
  constexpr int64_t kFewLabels = 2000, kFolds = 5, kLargeFolds = 10;
  LogisticProblem problem(runtime, features, classes);
  const int64_t labelled =
      std::count_if(labels.begin(), labels.end(), [](int32_t label) { return label >= 0; });
  const bool few = labelled <= kFewLabels;
  const int64_t parts = few ? kFolds : kLargeFolds, folds = few ? kFolds : 1;
  // More labels need less of it, and a fit to few rows is fast.
  const std::vector<double> strengths =
      few ? powers_from(10.0, std::sqrt(10.0), 9) : powers_from(0.1, 10.0, 5);
  const std::vector<float> moments = few ? std::vector<float>{} : problem.second_moments();
  const int search_iterations = few ? 100 : 50;
  const Permutation order({.seed = seed, .use = RandomUse::labels, .tensor = 1}, labels.size());

  std::vector<double> scores(strengths.size(), 0.0);
  std::vector<LinearModel> models;  // of the last fold, by strength
  for (int64_t fold = 0; fold < folds; ++fold) {
    std::vector<int32_t> fitted = labels, held_out = labels;
    for (size_t i = 0; i < labels.size(); ++i)
      (int64_t(order(i)) % parts == fold ? fitted : held_out)[i] = -1;
    LinearModel model(classes, features.dims);  // each fit starts from the stronger penalty's
    models.clear();
    double best = 0.0;
    for (size_t i = 0; i < strengths.size(); ++i) {
      fit_logistic(problem, fitted, strengths[i], model, search_iterations, moments);
      models.push_back(model);
      const double score = accuracy(problem.logits(model), classes, held_out);
      scores[i] += score / double(folds);
      if (!few && score <= best) break;
      best = std::max(best, score);
    }
  }
  const size_t chosen = size_t(std::max_element(scores.begin(), scores.end()) - scores.begin());
  LogisticFit fit{.model = models[chosen], .l2 = strengths[chosen], .held_out_accuracy = scores[chosen]};
  fit_logistic(problem, labels, fit.l2, fit.model, 100, moments);
  return fit;
}

}  // namespace vqlab
