// What a person sees while a run trains: a progress bar on a terminal, plain lines otherwise.
#pragma once

#include <chrono>
#include <string>

#include "engine/training.hpp"

namespace vqlab {

// "1m07s"
std::string format_seconds(double seconds);

class Console : public TrainObserver {
 public:
  explicit Console(bool quiet);
  ~Console() override;
  void note(const std::string& line) override;
  void warning(const std::string& line) override;
  void on_step(const StepReport& report, int64_t end_step, double images_per_second,
               double eta_seconds) override;
  void on_evaluation(int64_t epoch, const Evaluation& evaluation, bool is_best) override;

 private:
  void print_line(const std::string& line);
  void clear_bar();

  const bool quiet_, terminal_;
  bool bar_shown_ = false;
  std::chrono::steady_clock::time_point last_line_{};
};

}  // namespace vqlab
