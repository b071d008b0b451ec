// Restart of dead codes from the current batch (the rule of Jukebox and Moshi, made relative to the mean
// count).
#pragma once

#include "../core/op.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

// Every `every` steps: code k is dead if cluster_size[k] < threshold * mean cluster_size. The r-th dead code,
// by code number, takes latent P(r), P a permutation of the N rows keyed by (seed, step): sampling without
// replacement. Then cluster_size = mean, cluster_sum = mean * latent. With more dead codes than rows the rest
// waits.
struct RestartOp {
  View<float> codebook;          // (K, D), updated
  View<float> cluster_size;      // (K), updated
  View<float> cluster_sum;       // (K, D), updated; or absent (codebook trained by gradient)
  View<float> moment1, moment2;  // (K, D), zeroed for a restarted code; or absent
  View<int32_t> replaced;        // (1), number of codes replaced by this call
  View<const float> latents;     // (N, D), finite
  View<const StepState> state;   // (1)
  View<const int32_t> poisoned;  // (1), not 0: nothing changes
  float threshold;               // in [0, 1); 0 = off
  int64_t every;                 // >= 1
  uint64_t seed;

  // Throws Error(failed) on shapes that disagree or a value out of range.
  void check() const;
};

void run_cpu(const RestartOp& op);
void run_cuda(const RestartOp& op, Stream stream);

}  // namespace vqlab
