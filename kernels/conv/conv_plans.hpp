// Which engine of cuDNN computes a convolution. The rule: sums in fp32, deterministic, compiled beforehand,
// nothing fused, with a bounded workspace; without tensor cores in fp32 (no TF32), with them otherwise, if
// there are such. What is fused or compiled at run time is used only where it was measured (conv_choice.hpp).
#pragma once

#include "conv_problem.hpp"
#include "cudnn_graph.hpp"

namespace vqlab {

// Uids of the tensors of a plan. Bias: of bias and bias_relu; mask: the ReLU's output; sums: of mask_sums.
inline constexpr int64_t kLargeUid = 1, kFilterUid = 2, kSmallUid = 3, kBiasUid = 4, kMaskUid = 5,
                         kSumsUid = 6;

// The properties of a card that need not be here: a name of plan_cards() (plan_table.hpp). Throws
// Error(usage) for another.
CudnnDescriptor cudnn_card(const std::string& name);

struct ConvPlan {
  CudnnConfig config;
  CudnnDescriptor plan;
  int64_t workspace_bytes;  // at most kConvWorkspaceBytes
};

// The operations must outlive what is asked of the graph.
struct ConvGraph {
  std::vector<CudnnDescriptor> operations;
  CudnnDescriptor graph;
};
// Throws Error(failed) if cuDNN refuses it.
ConvGraph conv_graph(const ConvProblem& problem, const CudnnTarget& target);

// Whether all its sums are in fp32 without tensor cores, and in the same order each time.
bool is_exact(const CudnnConfig& config);
// The same, with tensor cores allowed where the precision is not fp32.
bool serves(const CudnnConfig& config, Precision precision);
bool has_note(const CudnnConfig& config, cudnnBackendNumericalNote_t note);
// Compiling takes seconds for each plan, and needs NVRTC and a driver.
bool compiles_at_run_time(const CudnnConfig& config);

// Of that choice. Throws Error(failed) if cuDNN cannot build it, or it needs too much workspace.
ConvPlan plan_choice(const ConvProblem& problem, const ConvChoice& choice, const CudnnTarget& target);

// The best by cuDNN's heuristics. The same version of cuDNN and the same model of GPU give the same plan.
// Throws Error(failed) if there is none.
ConvPlan plan_convolution(const ConvProblem& problem, const CudnnTarget& target);

// Those that serve, precompiled ones first. Whether a run-time engine fits the workspace is known only once
// it is compiled.
std::vector<CudnnConfig> serving_configs(const ConvProblem& problem, const CudnnTarget& target);

// What list_choices() of conv_choice.hpp gives, for any target.
std::vector<ConvChoice> candidate_choices(const ConvProblem& problem, bool compile,
                                          const CudnnTarget& target);

// All that cuDNN lists for a problem, of both modes, whatever their notes.
std::vector<CudnnConfig> listed_configs(const CudnnTarget& target, const ConvGraph& graph);

}  // namespace vqlab
