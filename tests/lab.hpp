// Whole training runs on a small synthetic set.
#pragma once

#include <filesystem>
#include <fstream>

#include "engine/checkpoint.hpp"
#include "engine/training.hpp"
#include "synthetic.hpp"

namespace vqlab::testing {

class Silent : public TrainObserver {
 public:
  void note(const std::string& line) override { notes.push_back(line); }
  void warning(const std::string& line) override { warnings.push_back(line); }
  void on_step(const StepReport&, int64_t, double, double) override {}
  void on_evaluation(int64_t, const Evaluation& e, bool best) override {
    mse.push_back(e.mse);
    is_best.push_back(best);
    used = e.usage.used;
    accuracy.push_back(e.accuracy);
  }
  std::vector<std::string> notes, warnings;
  std::vector<double> mse, accuracy;
  std::vector<bool> is_best;
  int64_t used = 0;
};

// A synthetic set in a temporary directory, and runs on it.
class Lab {
 public:
  explicit Lab(int64_t images = 80, int64_t height = 8, int64_t width = 8, int64_t channels = 1) {
    std::filesystem::create_directories(data());
    write_synthetic_set(data(), images, height, width, channels);
  }
  std::string data() const { return directory_ / "data"; }
  std::string run(const std::string& name) const { return directory_ / name; }
  TrainResult train(const std::string& name, const std::vector<std::string>& overrides = {},
                    std::optional<int64_t> max_steps = {}, RunAccess access = RunAccess::create) {
    TrainOptions options;
    options.config = access == RunAccess::resume ? load_run_config(run(name), overrides)
                                                 : parse_config(tiny_config(data()), "tiny", overrides);
    options.run = run(name);
    options.access = access;
    options.max_steps = max_steps;
    options.graph = graph;
    return vqlab::train(options, observer);
  }
  std::string weights(const std::string& name) const {
    return Checkpoint(run(name), "last").weights_sha256();
  }
  // metrics.jsonl without what depends on the clock.
  std::string metrics(const std::string& name) const {
    std::ifstream file(run(name) + "/metrics.jsonl");
    std::string text;
    for (std::string line; std::getline(file, line);)
      text += line.substr(0, line.find(", \"images_per_second\"")) + "\n";
    return text;
  }
  Silent observer;
  bool graph = true;

 private:
  TemporaryDirectory directory_;
};

}  // namespace vqlab::testing
