#include "conv_plans.hpp"

#include <algorithm>

namespace vqlab {
namespace {

// The operation must outlive what is asked of the graph.
struct ConvGraph {
  CudnnDescriptor operation, graph;
};

ConvGraph make_graph(const ConvProblem& p, const CudnnTarget& target) {
  const CudnnDescriptor large =
      cudnn_tensor(kLargeUid, {p.batch, p.large_channels, p.large_height, p.large_width}, kConvAlignment);
  const CudnnDescriptor small =
      cudnn_tensor(kSmallUid, {p.batch, p.small_channels, p.small_height, p.small_width}, kConvAlignment);
  const CudnnDescriptor filter =
      cudnn_tensor(kFilterUid, {p.small_channels, p.large_channels, p.kernel, p.kernel}, kConvAlignment);
  CudnnDescriptor operation =
      cudnn_operation(p.operation, cudnn_convolution(p.padding, p.stride), large, filter, small);
  CudnnDescriptor graph = cudnn_graph(target, operation);
  return {.operation = std::move(operation), .graph = std::move(graph)};
}

// Compiling takes seconds for each plan, and needs NVRTC.
bool is_compiled(const CudnnConfig& config) {
  return std::ranges::count(config.behavior_notes, CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) == 0;
}

}  // namespace

// Of all numerical notes only this one takes nothing away. The others are tensor cores (TF32 here), inputs or
// sums of less precision, FFT, Winograd, and no determinism. An engine is taken at its word: 67, a Winograd
// weight gradient of 3 x 3 filters, has no note.
bool is_exact(const CudnnConfig& config) {
  return std::ranges::all_of(config.numerical_notes, [](cudnnBackendNumericalNote_t note) {
    return note == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP;
  });
}

ConvPlan plan_convolution(const ConvProblem& problem, const CudnnTarget& target) {
  const ConvGraph graph = make_graph(problem, target);
  size_t offered = 0;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
    for (CudnnConfig& config : cudnn_configs(target, graph.graph, mode)) {
      ++offered;
      if (!is_exact(config) || !is_compiled(config)) continue;
      std::optional<CudnnDescriptor> plan = cudnn_plan(target, config.config);
      if (!plan) continue;
      const int64_t bytes = plan->get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
      if (bytes > kConvWorkspaceBytes) continue;
      return {.config = std::move(config), .plan = std::move(*plan), .workspace_bytes = bytes};
    }
  throw Error(ErrorKind::failed,
              fmt::format("cuDNN offers {} ways to compute the convolution {}, none of them in fp32, "
                          "deterministic and with at most {} MiB of workspace",
                          offered, problem.text(), kConvWorkspaceBytes >> 20),
              "use a smaller batch, another width of the model, or --device cpu");
}

}  // namespace vqlab
