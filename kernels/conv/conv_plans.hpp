// Which engine of cuDNN computes a convolution: fp32 sums without tensor cores (no TF32), deterministic,
// compiled beforehand, and with a bounded workspace.
#pragma once

#include "conv_problem.hpp"
#include "cudnn_graph.hpp"

namespace vqlab {

// Uids of the tensors of a plan.
inline constexpr int64_t kLargeUid = 1, kFilterUid = 2, kSmallUid = 3;

struct ConvPlan {
  CudnnConfig config;
  CudnnDescriptor plan;
  int64_t workspace_bytes;  // at most kConvWorkspaceBytes
};

// Whether all its sums are in fp32, and in the same order each time.
bool is_exact(const CudnnConfig& config);

// The best by cuDNN's heuristics. The same version of cuDNN and the same model of GPU give the same plan.
// Throws Error(failed) if there is none.
ConvPlan plan_convolution(const ConvProblem& problem, const CudnnTarget& target);

}  // namespace vqlab
