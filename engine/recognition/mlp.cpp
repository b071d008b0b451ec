#include "mlp.hpp"

#include <cmath>
#include <numbers>

#include "engine/adam.hpp"
#include "engine/classifier.hpp"
#include "kernels/core/random.hpp"
#include "logistic.hpp"

namespace vqlab {
namespace {

Config head_config(const MlpOptions& options, int64_t classes, uint64_t seed) {
  Config config;
  config.seed = int64_t(seed);
  config.loss.classifier_weight = 1.0;
  config.classifier.classes = classes;
  config.classifier.hidden = options.hidden;
  config.classifier.dropout = options.dropout;
  return config;
}

// The head, its optimiser and a batch of its input.
class Mlp {
 public:
  Mlp(const Runtime& runtime, const MlpOptions& options, int64_t dims, int64_t classes, int64_t batch,
      uint64_t seed)
      : runtime_(runtime),
        classes_(classes),
        batch_(batch),
        head_(parameters_, head_config(options, classes, seed), dims, Precision::fp32),
        arena_(runtime.device()) {
    parameters_.allocate(runtime, /*training=*/true);
    parameters_.initialise(seed, runtime);
    const auto plan = [&] {
      input_ = arena_.take<float>({batch, 1, 1, dims});
      head_.plan(arena_, {.value = input_, .gradient = {}}, Mode::training, /*alone=*/true);
      state_ = arena_.take<StepState>({1});
    };
    plan();
    arena_.allocate(runtime);
    plan();
    adam_.allocate(runtime, parameters_);
  }

  void step(const std::vector<float>& rows, const std::vector<int32_t>& labels, const StepState& state) {
    const Stream stream = runtime_.compute();
    runtime_.upload(input_.data, rows.data(), input_.bytes(), stream);
    runtime_.upload(head_.labels().data, labels.data(), head_.labels().bytes(), stream);
    runtime_.upload(state_.data, &state, state_.bytes(), stream);
    const Pass pass(stream, state_);
    head_.forward(pass);
    head_.measure_loss(pass);
    head_.backward(stream);
    adam_.update(parameters_, {}, head_.loss(), {}, state_, stream);
    runtime_.synchronize(stream);  // the rows may be filled again
  }
  // (batch, classes)
  std::vector<float> probabilities(const std::vector<float>& rows) {
    const Stream stream = runtime_.compute();
    const std::vector<int32_t> none(size_t(batch_), -1);
    runtime_.upload(input_.data, rows.data(), input_.bytes(), stream);
    runtime_.upload(head_.labels().data, none.data(), head_.labels().bytes(), stream);
    head_.forward(stream);
    head_.measure_loss(stream);
    return to_host(head_.probabilities(), runtime_);
  }

 private:
  const Runtime& runtime_;
  const int64_t classes_, batch_;
  ParameterStore parameters_;
  Classifier head_;
  Adam adam_;
  Arena arena_;
  View<float> input_;
  View<StepState> state_;
};

}  // namespace

std::vector<int32_t> recognise_with_mlp(const Runtime& runtime, const FeatureMatrix& training,
                                        const std::vector<int32_t>& labels, const FeatureMatrix& queries,
                                        int64_t classes, const MlpOptions& options, uint64_t seed) {
  const int64_t batch = std::min(options.batch_size, training.rows), per_epoch = training.rows / batch;
  const int64_t epochs = std::max(options.epochs, (options.least_steps + per_epoch - 1) / per_epoch);
  const int64_t D = training.dims, steps = epochs * per_epoch;
  Mlp mlp(runtime, options, D, classes, batch, seed);
  std::vector<float> rows(size_t(batch * D));
  std::vector<int32_t> row_labels(static_cast<size_t>(batch));
  for (int64_t step = 0; step < steps; ++step) {
    const Permutation order({.seed = seed, .step = uint32_t(step / per_epoch), .use = RandomUse::order},
                            uint64_t(training.rows));
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t row = int64_t(order(uint64_t(step % per_epoch * batch + i)));
      std::copy_n(training.row(row), D, rows.begin() + i * D);
      row_labels[size_t(i)] = labels[size_t(row)];
    }
    const double progress = double(step) / double(steps);
    const double rate = 0.5 * options.learning_rate * (1.0 + std::cos(std::numbers::pi * progress));
    mlp.step(rows, row_labels, {.step = step, .learning_rate = float(rate)});
  }
  std::vector<int32_t> found;
  for (int64_t first = 0; first < queries.rows; first += batch) {
    const int64_t count = std::min(batch, queries.rows - first);
    std::copy_n(queries.row(first), count * D, rows.begin());
    const std::vector<int32_t> classes_found = largest_logits(mlp.probabilities(rows), classes);
    found.insert(found.end(), classes_found.begin(), classes_found.begin() + count);
  }
  return found;
}

}  // namespace vqlab
