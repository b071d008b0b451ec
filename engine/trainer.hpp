// One training step in ten rooms, and the state that a checkpoint must hold to repeat it.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "adam.hpp"
#include "kernels/nn/step_metrics.hpp"
#include "model.hpp"
#include "resident_set.hpp"

namespace vqlab {

// What the last step measured, on the host.
struct StepReport {
  int64_t step = 0;             // steps done
  double loss = 0.0;            // total, as trained
  double reconstruction = 0.0;  // its reconstruction part, weighted
  double classification = 0.0;  // its classification part, weighted
  double commitment = 0.0;      // its commitment part, weighted
  double error = 0.0;           // mean squared (or absolute) error in pixels of [0, 1]
  double gradient_norm = 0.0;
  double learning_rate = 0.0;
  bool has_codebook = false;  // the next two are set
  CodebookHealth health{};
  int64_t replaced = 0;  // codes restarted in this step
};

// Steps whose metrics the device keeps for the host, and steps whose scalars the host gives it at a time.
inline constexpr int64_t kMetricsRing = 64, kPlannedSteps = 64;

class Trainer {
 public:
  // Trains on `images`, whose set must outlive this. Nothing is allocated after the constructor. Throws
  // Error(data) if they are fewer than a batch.
  Trainer(const Config& config, const Runtime& runtime, const ImageRange& images,
          Residency residency = Residency::resident);

  // One step: the ten rooms. On a GPU it returns before the step is done. Throws Error(failed), with the step
  // and the tensor, when a value is not finite and on_nan is "stop", or in 100 consecutive steps; on a GPU
  // some steps later, none of which has changed anything.
  void step();

  // From now on the rooms from the encoder to the metrics are one Graph, with resident images those before
  // too, once the codebook is initialised and two steps were done since: the same bits, and hardly any time
  // of the host. If they cannot be captured, `tell` is told why, once, and steps go on as they were. On the
  // CPU nothing changes.
  void use_graph(const std::function<void(const std::string& why)>& tell = {}) {
    wants_graph_ = true;
    tell_ = tell;
  }
  bool has_graph() const { return !graph_.empty(); }

  // Of the last step. Waits for the device; throws as step() does.
  StepReport report();
  // Metrics of the steps since the last call, at most the last kMetricsRing of them. Likewise.
  std::vector<StepMetrics> take_metrics();

  int64_t steps_done() const { return step_; }
  int64_t steps_per_epoch() const {
    return images_.count() / config_.train.batch_size;
  }  // the partial batch is dropped
  int64_t total_steps() const { return config_.train.epochs * steps_per_epoch(); }
  // What the optimiser has counted. Waits for the device.
  const OptimizerState& optimizer();
  Model& model() { return model_; }
  double variance() const { return variance_; }  // of the training pixels in [0, 1]

  // Continues after `step` steps; the model's tensors have been restored.
  void resume_at(int64_t step, int64_t skipped, int64_t skipped_in_a_row);

 private:
  // The rooms.
  void pick_pictures();      // 1
  void fill_pinned_batch();  // 2
  void upload_batch();       // 3, what the host does of it
  void load_batch();         // 3, what the device does
  void encode();             // 4
  void quantize();           // 5
  void decode();             // 6
  void measure_loss();       // 7
  void compute_gradients();  // 8
  void update();             // 9
  void record();             // 10

  void centre_initial_latents();
  bool graph_is_due();
  void capture(const std::function<void()>& enqueue);
  int64_t epoch(int64_t step) const { return step / steps_per_epoch(); }
  int64_t first_index(int64_t step) const { return step % steps_per_epoch() * config_.train.batch_size; }
  void continue_at(int64_t step);
  void plan_steps();
  void read_metrics();
  double learning_rate(int64_t step) const;
  float mix(int64_t step) const;
  [[noreturn]] void fail_not_finite();
  std::string first_bad_tensor() const;

  const Config config_;
  const Runtime& runtime_;
  const ImageRange images_;
  const Stream stream_;
  Pass pass_{stream_};  // with the step's scalars
  Model model_;
  Adam adam_;
  std::optional<ResidentSet> set_;  // one of the two
  std::optional<Feeder> feeder_;
  double variance_ = 0.0;
  int64_t step_ = 0, steps_read_ = 0, steps_planned_ = 0;

  Slab slab_{"step scalars"};
  View<StepState> state_, plan_;  // (1), (kPlannedSteps)
  View<int32_t> places_;          // (B), of the batch in the resident set; or absent
  View<StepMetrics> ring_;        // (kMetricsRing)

  Slab pinned_slab_{"pinned step scalars", MemoryKind::pinned};
  struct StagedPlan {
    View<StepState> steps;  // as plan_
    Event uploaded;
  };
  std::array<StagedPlan, 2> staged_;     // one is filled while the other is being copied
  View<OptimizerState> host_optimizer_;  // as of steps_read_, like the ring
  View<StepMetrics> host_ring_;
  std::vector<StepMetrics> metrics_;  // read, but not yet taken

  bool wants_graph_ = false;
  std::function<void(const std::string&)> tell_;
  int64_t steps_before_graph_ = 2;  // eager, with an initialised codebook: they load kernels and make plans
  Graph graph_;                     // of rooms 4 to 10, with resident images from load_batch on
};

// Variance of all pixels of the images, in [0, 1] units: exact, by a histogram of the bytes.
double pixel_variance(const ImageRange& images);

}  // namespace vqlab
