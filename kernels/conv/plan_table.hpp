// What cuDNN would use for convolutions on a card that need not be here: its heuristics answer for one that
// is described to them.
#pragma once

#include <string>
#include <vector>

#include "conv_problem.hpp"

namespace vqlab {

// One line of the table: the config that is taken (fused graphs: the first that serves, to be measured).
struct PlanLine {
  ConvProblem problem;
  int64_t listed = 0,
          serving = 0;      // configs by cuDNN's heuristics; of them deterministic and of the precision
  int64_t engine = -1;      // its global index; -1: none serves
  bool own_kernel = false;  // weight_gradient.cu computes it, not cuDNN
  bool tensor_cores = false;
  bool keeps_nan = false;             // promises it
  bool compiled_at_run_time = false;  // by NVRTC, in seconds; its workspace is known only then
  int64_t workspace_bytes = 0;

  // "engine 28, precompiled, fp32 units", "none"
  std::string text() const;
};

// a100 | h100 | h200
const std::vector<std::string>& plan_cards();

// "" if engines that are compiled at run time can be listed, which takes a driver's library, or the toolkit's
// stub of it, which is then loaded; else one line why not.
std::string run_time_engines_problem();

// A line for each problem, on that card, or on the present GPU if `card` is "". Throws Error(device) without
// cuDNN, Error(failed) on a problem that cuDNN refuses; a build with CUDA only.
std::vector<PlanLine> plan_table(const std::string& card, const std::vector<ConvProblem>& problems);

}  // namespace vqlab
