#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "conv_plans.hpp"
#include "plan_table.hpp"

namespace vqlab {
namespace {

// In cuDNN's schema of a device. What is not here is equal on all.
struct Card {
  const char *name, *device_name;
  int64_t capability, multiprocessors, memory, shared_per_block, clock, memory_clock, l2_cache;
};
constexpr Card kCards[] = {
    {"a100", "NVIDIA A100-SXM4-80GB", 800, 108, 85029158912, 166912, 1410000, 1593000, 41943040},
    {"h100", "NVIDIA H100 80GB HBM3", 900, 132, 85029158912, 232448, 1980000, 2619000, 52428800},
    {"h200", "NVIDIA H200", 900, 132, 150754820096, 232448, 1980000, 3201000, 62914560}};

// The plan that training would use, or for a fused graph the first that serves.
PlanLine plan_line(const ConvProblem& problem, const CudnnTarget& target) {
  PlanLine line{.problem = problem};
  const ConvGraph graph = conv_graph(problem, target);
  const std::vector<CudnnConfig> configs = listed_configs(target, graph);
  line.listed = int64_t(configs.size());
  line.serving =
      std::ranges::count_if(configs, [&](const CudnnConfig& c) { return serves(c, problem.precision); });
  line.own_kernel = problem.operation == ConvOperation::wgrad && prefers_split_rows(problem);
  const auto describe = [&](const CudnnConfig& config) {
    line.engine = config.engine;
    line.tensor_cores = has_note(config, CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    line.keeps_nan = has_note(config, CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP);
    line.compiled_at_run_time = compiles_at_run_time(config);
  };
  if (problem.fusion == ConvFusion::none) {
    const ConvPlan plan = plan_convolution(problem, target);
    describe(plan.config);
    line.workspace_bytes = plan.workspace_bytes;
    return line;
  }
  const std::vector<CudnnConfig> candidates = serving_configs(problem, target);
  if (candidates.empty()) return line;
  describe(candidates.front());
  if (line.compiled_at_run_time) return line;
  if (const std::optional<CudnnDescriptor> plan = cudnn_plan(target, candidates.front().config))
    line.workspace_bytes = plan->get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
  return line;
}

std::vector<PlanLine> plan_lines(const std::vector<ConvProblem>& problems, const CudnnTarget& target) {
  std::map<ConvProblem, PlanLine> known;  // layers repeat
  std::vector<PlanLine> lines;
  for (const ConvProblem& problem : problems) {
    auto line = known.find(problem);
    if (line == known.end()) line = known.emplace(problem, plan_line(problem, target)).first;
    lines.push_back(line->second);
  }
  return lines;
}

}  // namespace

CudnnDescriptor cudnn_card(const std::string& name) {
  const auto known = std::ranges::find_if(kCards, [&](const Card& c) { return c.name == name; });
  if (known == std::end(kCards))
    throw Error(ErrorKind::usage, fmt::format("card {} is not known", name),
                fmt::format("choose one of {}", fmt::join(plan_cards(), ", ")), "--card");
  const Card& c = *known;
  return cudnn_device(fmt::format(
      R"({{"cudnn_version":{},"deviceVer":{},"driverVer":13000,"cudaDeviceId":0,"totalGlobalMem":{},)"
      R"("maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,)"
      R"("multiProcessorCount":{},"warpSize":32,"maxSharedMemoryPerBlock":49152,)"
      R"("maxSharedMemoryPerBlockOptin":{},"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,)"
      R"("maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,)"
      R"("supportCoopLaunch":1,"smClockRateKHz":{},"memClockRateKHz":{},"l2CacheSize":{},)"
      R"("deviceName":"{}"}})",
      cudnn().cudnnGetVersion(), c.capability, c.memory, c.multiprocessors, c.shared_per_block, c.clock,
      c.memory_clock, c.l2_cache, c.device_name));
}

std::string PlanLine::text() const {
  if (own_kernel) return "our kernel, fp32 units";
  if (engine < 0) return "none";
  return fmt::format("engine {}, {}, {}{}", engine, compiled_at_run_time ? "runtime-compiled" : "precompiled",
                     tensor_cores ? "tensor cores" : "fp32 units", keeps_nan ? ", NaN kept" : "");
}

const std::vector<std::string>& plan_cards() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const Card& card : kCards) list.emplace_back(card.name);
    return list;
  }();
  return names;
}

// cuDNN loads "libcuda.so.1" to check such an engine; the stub has that name inside, so once loaded it is
// found.
std::string run_time_engines_problem() {
  if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) != nullptr) return "";
  const char* home = std::getenv("CUDA_HOME");
  for (const std::string& folder : {std::string(home == nullptr ? "" : home), std::string("/usr/local/cuda")})
    if (!folder.empty() &&
        dlopen((folder + "/lib64/stubs/libcuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr)
      return "";
  return "neither a driver's libcuda.so.1 nor the CUDA toolkit's stub of it: engines that are compiled at "
         "run "
         "time cannot be listed";
}

std::vector<PlanLine> plan_table(const std::string& card, const std::vector<ConvProblem>& problems) {
  if (card.empty()) {
    cudnnHandle_t handle = nullptr;
    CUDNN_CHECK(cudnn().cudnnCreate(&handle));  // as long as the process, as that of the convolutions
    return plan_lines(problems, CudnnTarget(handle));
  }
  const CudnnDescriptor properties = cudnn_card(card);
  return plan_lines(problems, CudnnTarget(properties));
}

}  // namespace vqlab
