// What an experiment trains and what it measures on each trained model, before anything is done.
#pragma once

#include <string>
#include <vector>

#include "axes.hpp"
#include "engine/config.hpp"
#include "engine/recognition/recognition.hpp"

namespace vqlab {

// One call of recognise() on a checkpoint. Its rows are shown under `group`; "" is the member's own name.
struct RecognitionJob {
  std::string group = "", checkpoint = "last";
  RecognitionOptions options = {};

  Json to_json() const;
};

// Rows of this group depend on the images alone, not on a model.
inline constexpr const char* kBaselineGroup = "(images)";

// A run to train. Members of equal name and different seed make a group of the report.
struct Member {
  std::string name;
  int64_t seed = 0;
  Config config;                       // its `name` and `seed` too
  std::vector<std::string> overrides;  // what sets it apart, "KEY=VALUE"
  bool reconstructs = true;            // false: its reconstructions are not trained, and not reported
  std::vector<RecognitionJob> recognition = {};

  std::string directory() const;  // "runs/NAME-seedN"
};

// Horizontal and vertical figure (or key of an axis) of a chart.
struct ChartAxes {
  std::string x, y;
};

struct ExperimentPlan {
  std::string kind;  // "sweep" or the experiment's name: a directory holds one kind
  std::string title = "";
  std::vector<std::string> notes = {};  // what a reader must know to judge the figures
  std::vector<Member> members = {};
  std::vector<double> mse_levels = {};  // of the validation images, for "seconds until"
  std::vector<ChartAxes> charts = {};
};

struct SweepOptions {
  std::string config;  // path
  std::vector<std::string> overrides, axes;
  std::vector<int64_t> seeds;  // empty: that of the configuration
  bool recognition = false;
  std::vector<double> mse_levels;
  std::vector<std::string> charts;  // "X,Y"
};
// Throws Error(usage) as parse_axis, multiply and load_config do, and for two members of equal configuration.
ExperimentPlan plan_sweep(const SweepOptions& options);

struct PreparedOptions {
  std::string data = "fmnist";  // or a directory with IDX or CIFAR-10 files
  std::vector<std::string> overrides = {};
  std::vector<std::string> members = {};  // names; empty = all
  std::vector<int64_t> seeds = {0, 1, 2};
  int64_t epochs = 5;
  bool quick = false;  // one epoch, the first seed; of recognition with 100 and 1000 labels
  std::vector<double> mse_levels = {};
};
// Every kind of latent and the two kinds of training with labels, at equal net, epochs and batch, and what
// their features are worth for recognition. Throws Error(usage) for an unknown member.
ExperimentPlan plan_recognition(const PreparedOptions& options);
// A plain autoencoder, and VQ and FSQ at about 16, 64, 256 and 1024 codes, at equal net, epochs and batch.
// Throws likewise.
ExperimentPlan plan_rate_distortion(const PreparedOptions& options);

}  // namespace vqlab
