// Where the time of a training step goes: by room and by op, beside what each op has to move and compute.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ceilings.hpp"
#include "training.hpp"

namespace vqlab {

struct ProfileOptions {
  Config config;                  // its device and threads are the Runtime's
  std::string run = {};           // a run, whose last checkpoint is gone on from; "": from random weights
  int64_t first = 20, last = 39;  // steps of this call that are profiled, counted from 1
  bool capture = false;           // leaves the measuring to a profiler that waits for cudaProfilerStart
  bool graph = false;             // with `capture`: steps as one graph, on a GPU
  Trust* trust = nullptr;         // as of train(), like the next
  std::string tuning_folder = {};
};

// Calls of an op with operands of one shape in one room. Figures are means of a step.
struct ProfiledOp {
  std::string name, room, detail;  // "conv_forward", "encoder", "4x4/2 28x28x1 > 14x14x16"
  double calls = 0.0, ms = 0.0;
  double ms_median = 0.0, ms_min = 0.0;  // of the steps
  OpCost cost{};                         // of all calls
  double share = 0.0;                    // of the step

  double gb_s() const { return ms > 0.0 ? cost.bytes / ms * 1e-6 : 0.0; }
  double tflop_s() const { return ms > 0.0 ? cost.flop / ms * 1e-9 : 0.0; }
  // Bytes against the copy or operations against the product, whichever is more. Beyond 1 where operands come
  // from a cache.
  double share_of_ceiling(const Ceilings& ceilings) const;
};

// `ops_ms` of its `ms` are in ops; the rest is work of the host, copies, or a device that waits.
struct ProfiledRoom {
  std::string name;
  double ms = 0.0, ops_ms = 0.0;
};

struct StepProfile {
  int64_t first = 0, last = 0;
  double step_ms = 0.0, step_ms_median = 0.0, step_ms_min = 0.0;
  // As many steps right after those, without a watch: what watching costs.
  double unwatched_ms = 0.0, unwatched_ms_median = 0.0, unwatched_ms_min = 0.0;
  double ops_ms = 0.0;                // the sum of all ops, at most step_ms
  std::vector<ProfiledRoom> rooms{};  // in the order of a step
  std::vector<ProfiledOp> ops{};      // the longest first
  bool starts_codebook = false;       // k-means, or the wait for its latents, is in these steps
  StepReport final_step{};            // `last`: the same as without a watch, bit for bit
};

// Trains to `last` and beyond, and writes nothing. On the CPU the clock is the host's, on a GPU events on the
// compute stream say when each op began and ended; steps are not waited for one by one. With `capture`
// nothing is timed: ranges of rooms and ops and the calls of cudaProfilerStart and -Stop are what another
// profiler sees, and only steps and final_step are filled in. Throws what train() throws, and Error(usage)
// for steps that are no range or that the configuration does not have.
StepProfile profile_step(const ProfileOptions& options, const Runtime& runtime, RunMessages& messages);

// "conv_backward_weight" of typeid(ConvBackwardWeightOp).name().
std::string op_name(const char* mangled);

}  // namespace vqlab
