#include "conv_plans.hpp"

#include <algorithm>

namespace vqlab {
namespace {

using Dimensions = std::array<int64_t, 4>;

constexpr int64_t kFirstInnerUid = 10;
// Configs of a graph that may be measured; compiling takes 2 to 4 seconds each.
constexpr int64_t kMostPrecompiled = 8, kMostCompiled = 2;

// Takes in turn the operations of a graph, and names the tensor that the last one has written.
class GraphBuilder {
 public:
  GraphBuilder(const ConvProblem& p)
      : type_(p.precision == Precision::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT),
        large_{p.batch, p.large_channels, p.large_height, p.large_width},
        small_{p.batch, p.small_channels, p.small_height, p.small_width},
        filter_{p.small_channels, p.large_channels, p.kernel, p.kernel},
        target_(p.operation == ConvOperation::fprop   ? small_
                : p.operation == ConvOperation::dgrad ? large_
                                                      : filter_),
        last_uid_(p.operation == ConvOperation::fprop   ? kSmallUid
                  : p.operation == ConvOperation::dgrad ? kLargeUid
                                                        : kFilterUid) {
    const bool fused = p.fusion != ConvFusion::none;
    const auto tensor = [&](int64_t uid, const Dimensions& dimensions) {
      return fused && uid == last_uid_ ? inner() : outer(uid, dimensions);
    };
    const CudnnDescriptor large = tensor(kLargeUid, large_), filter = outer(kFilterUid, filter_),
                          small = tensor(kSmallUid, small_);
    operations_.push_back(
        cudnn_operation(p.operation, cudnn_convolution(p.padding, p.stride), large, filter, small));
  }

  std::vector<CudnnDescriptor> fuse(ConvFusion fusion) && {
    const Dimensions channels{1, target_[1], 1, 1};
    if (fusion == ConvFusion::bias || fusion == ConvFusion::bias_relu) {
      const bool relu = fusion == ConvFusion::bias_relu;
      const CudnnDescriptor sum = last_inner(), biased = relu ? inner() : target();
      operations_.push_back(
          cudnn_add(sum, cudnn_tensor(kBiasUid, channels, kConvAlignment, CUDNN_DATA_FLOAT), biased));
      if (relu) operations_.push_back(cudnn_relu(biased, target()));
    } else if (fusion != ConvFusion::none) {
      const CudnnDescriptor gradient = last_inner(), masked = target();
      operations_.push_back(cudnn_relu_gradient(outer(kMaskUid, target_), gradient, masked));
      if (fusion == ConvFusion::mask_sums)
        operations_.push_back(
            cudnn_channel_sums(masked, cudnn_tensor(kSumsUid, channels, kConvAlignment, CUDNN_DATA_FLOAT)));
    }
    return std::move(operations_);
  }

 private:
  CudnnDescriptor outer(int64_t uid, const Dimensions& dimensions) const {
    return cudnn_tensor(uid, dimensions, kConvAlignment, type_);
  }
  CudnnDescriptor target() const { return outer(last_uid_, target_); }
  CudnnDescriptor inner() { return cudnn_inner_tensor(++inner_uid_, target_); }
  CudnnDescriptor last_inner() const { return cudnn_inner_tensor(inner_uid_, target_); }

  cudnnDataType_t type_;
  Dimensions large_, small_, filter_, target_;
  int64_t last_uid_, inner_uid_ = kFirstInnerUid;
  std::vector<CudnnDescriptor> operations_;
};

}  // namespace

ConvGraph conv_graph(const ConvProblem& problem, const CudnnTarget& target) {
  std::vector<CudnnDescriptor> operations = GraphBuilder(problem).fuse(problem.fusion);
  CudnnDescriptor graph = cudnn_graph(target, operations);
  return {.operations = std::move(operations), .graph = std::move(graph)};
}

bool has_note(const CudnnConfig& config, cudnnBackendNumericalNote_t note) {
  return std::ranges::count(config.numerical_notes, note) > 0;
}

bool compiles_at_run_time(const CudnnConfig& config) {
  return std::ranges::count(config.behavior_notes, CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) > 0;
}

// Of all numerical notes only these two take nothing away that was promised. The others are inputs or sums of
// less precision, FFT, Winograd, and no determinism. An engine is taken at its word: 67, a Winograd weight
// gradient of 3 x 3 filters, has no note.
bool serves(const CudnnConfig& config, Precision precision) {
  return std::ranges::all_of(config.numerical_notes, [&](cudnnBackendNumericalNote_t note) {
    return note == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP ||
           (note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE && precision != Precision::fp32);
  });
}

bool is_exact(const CudnnConfig& config) { return serves(config, Precision::fp32); }

std::vector<CudnnConfig> listed_configs(const CudnnTarget& target, const ConvGraph& graph) {
  std::vector<CudnnConfig> configs;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
    std::ranges::move(cudnn_configs(target, graph.graph, mode), std::back_inserter(configs));
  return configs;
}

ConvPlan plan_choice(const ConvProblem& wanted, const ConvChoice& choice, const CudnnTarget& target) {
  ConvProblem problem = wanted;
  if (!choice.fused) problem.fusion = ConvFusion::none;
  if (choice.engine < 0) return plan_convolution(problem, target);
  const ConvGraph graph = conv_graph(problem, target);
  std::optional<CudnnConfig> config = cudnn_config(target, graph.graph, choice.engine, choice.knobs);
  std::optional<CudnnDescriptor> plan;
  if (config) plan = cudnn_plan(target, config->config);
  const int64_t bytes = plan ? plan->get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) : 0;
  if (!plan || bytes > kConvWorkspaceBytes)
    throw Error(ErrorKind::failed,
                fmt::format("cuDNN {} cannot compute {} by {}", cudnn().cudnnGetVersion(), problem.text(),
                            choice.text()),
                "use the version of cuDNN and the model of GPU that it was chosen with");
  return {.config = std::move(*config), .plan = std::move(*plan), .workspace_bytes = bytes};
}

std::vector<ConvChoice> candidate_choices(const ConvProblem& problem, bool compile,
                                          const CudnnTarget& target) {
  const ConvPlan rule = plan_choice(problem, {}, target);
  std::vector<ConvChoice> choices = {
      {.fused = false, .engine = rule.config.engine, .knobs = rule.config.knobs}};
  const auto add = [&](ConvFusion fusion, int64_t most_compiled) {
    ConvProblem graph = problem;
    graph.fusion = fusion;
    int64_t precompiled = 0, compiled = 0;
    for (const CudnnConfig& config : serving_configs(graph, target)) {
      const bool compiles = compiles_at_run_time(config);
      int64_t& count = compiles ? compiled : precompiled;
      if (count >= (compiles ? most_compiled : kMostPrecompiled)) continue;
      const ConvChoice choice{
          .fused = fusion != ConvFusion::none, .engine = config.engine, .knobs = config.knobs};
      if (std::ranges::count(choices, choice) > 0) continue;
      choices.push_back(choice);
      ++count;
    }
  };
  add(ConvFusion::none, 0);
  if (problem.fusion != ConvFusion::none) add(problem.fusion, compile ? kMostCompiled : 0);
  return choices;
}

std::vector<CudnnConfig> serving_configs(const ConvProblem& problem, const CudnnTarget& target) {
  const ConvGraph graph = conv_graph(problem, target);
  std::vector<CudnnConfig> configs = listed_configs(target, graph);
  std::erase_if(configs, [&](const CudnnConfig& c) { return !serves(c, problem.precision); });
  std::ranges::stable_partition(configs, [](const CudnnConfig& c) { return !compiles_at_run_time(c); });
  return configs;
}

ConvPlan plan_convolution(const ConvProblem& problem, const CudnnTarget& target) {
  const ConvGraph graph = conv_graph(problem, target);
  std::vector<CudnnConfig> configs = listed_configs(target, graph);
  // cuDNN lists fp32 engines before those with tensor cores where it thinks them faster; who asked for tensor
  // cores gets them.
  if (problem.precision != Precision::fp32)
    std::ranges::stable_partition(
        configs, [](const CudnnConfig& c) { return has_note(c, CUDNN_NUMERICAL_NOTE_TENSOR_CORE); });
  for (CudnnConfig& config : configs) {
    if (!serves(config, problem.precision) || compiles_at_run_time(config)) continue;
    std::optional<CudnnDescriptor> plan = cudnn_plan(target, config.config);
    if (!plan) continue;
    const int64_t bytes = plan->get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    if (bytes > kConvWorkspaceBytes) continue;
    return {.config = std::move(config), .plan = std::move(*plan), .workspace_bytes = bytes};
  }
  throw Error(
      ErrorKind::failed,
      fmt::format("cuDNN offers {} ways to compute the convolution {}, none of them in this precision, "
                  "deterministic and with at most {} MiB of workspace",
                  configs.size(), problem.text(), kConvWorkspaceBytes >> 20),
      "use a smaller batch, another width of the model, or --device cpu");
}

}  // namespace vqlab
