#include <algorithm>
#include <map>
#include <mutex>

#include "../core/cuda.hpp"
#include "conv_plans.hpp"

namespace vqlab {
namespace {

// The handle and the plans of this process, which drives one GPU. Never destroyed: at exit the driver may be
// gone before us.
class Planner {
 public:
  static Planner& instance() {
    static Planner& planner = *new Planner;
    return planner;
  }

  // data[i] is the tensor uids[i]; cuDNN takes pointers to void, also to what it only reads.
  void run(const char* op, const ConvProblem& problem, const ConvChoice& choice,
           std::span<const int64_t> uids, const std::vector<const void*>& data, std::byte* workspace,
           Stream stream, std::source_location at = std::source_location::current()) {
    const std::lock_guard lock(mutex_);  // the handle's stream is state
    CUDNN_CHECK(cudnn().cudnnSetStream(target().handle(), stream.handle));
    std::vector<void*> pointers;
    for (const void* pointer : data) pointers.push_back(const_cast<void*>(pointer));
    cudnn_execute(handle_, plan(problem, choice).plan, uids, pointers, workspace);
    check_launch(op, cudaSuccess, stream, at);
  }

  // Calls use(plan) while no other thread uses it.
  template <class Use>
  auto with_plan(const ConvProblem& problem, const ConvChoice& choice, const Use& use) {
    const std::lock_guard lock(mutex_);
    return use(plan(problem, choice));
  }
  template <class Use>
  auto with_target(const Use& use) {
    const std::lock_guard lock(mutex_);
    return use(target());
  }

 private:
  CudnnTarget target() {
    if (handle_ == nullptr) CUDNN_CHECK(cudnn().cudnnCreate(&handle_));
    return CudnnTarget(handle_);
  }
  const ConvPlan& plan(const ConvProblem& problem, const ConvChoice& choice) {
    auto& known = plans_[problem];
    auto found = std::ranges::find_if(known, [&](const auto& entry) { return entry.first == choice; });
    if (found == known.end())
      found = known.insert(known.end(), {choice, plan_choice(problem, choice, target())});
    return found->second;
  }

  std::mutex mutex_;
  cudnnHandle_t handle_ = nullptr;
  std::map<ConvProblem, std::vector<std::pair<ConvChoice, ConvPlan>>> plans_;
};

}  // namespace

std::string conv_problem_cuda() { return cudnn_problem(); }

std::string conv_library() {
  const size_t version = cudnn().cudnnGetVersion();
  return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

ConvChoice choose_by_rule(const ConvProblem& problem) {
  return Planner::instance().with_plan(problem, {}, [](const ConvPlan& plan) {
    return ConvChoice{.fused = false, .engine = plan.config.engine, .knobs = plan.config.knobs};
  });
}

std::vector<ConvChoice> list_choices(const ConvProblem& problem, bool compile) {
  return Planner::instance().with_target(
      [&](const CudnnTarget& target) { return candidate_choices(problem, compile, target); });
}

void prepare_choice(const ConvProblem& problem, const ConvChoice& choice) {
  Planner::instance().with_plan(problem, choice, [](const ConvPlan&) {});
}

void convolve_cuda(const char* op, const ConvProblem& problem, const ConvChoice& choice,
                   const ConvOperands& o, std::byte* workspace, Stream stream) {
  const bool to_small = problem.operation == ConvOperation::fprop;
  std::vector<int64_t> uids = {to_small ? kLargeUid : kSmallUid, kFilterUid,
                               to_small ? kSmallUid : kLargeUid};
  std::vector<const void*> data = {o.source, o.filter, o.target};
  if (choice.fused) {
    const bool masks = problem.fusion == ConvFusion::mask;
    uids.push_back(masks ? kMaskUid : kBiasUid);
    data.push_back(masks ? o.mask : o.bias);
  }
  Planner::instance().run(op, problem, choice, uids, data, workspace, stream);
}

void convolve_weight_gradient_cuda(const char* op, const ConvProblem& problem, const ConvChoice& choice,
                                   float* d_filter, const float* large, const float* small,
                                   std::byte* workspace, Stream stream) {
  VQ_REQUIRE(problem.precision != Precision::bf16, "{}: cuDNN's gradient of a filter in bf16 is bf16 itself",
             op);
  Planner::instance().run(op, problem, choice, std::array{kLargeUid, kFilterUid, kSmallUid},
                          {large, d_filter, small}, workspace, stream);
}

// On an H200, for fmnist-s at batch 128, cuDNN 9 takes 140 to 415 us for a filter whose arithmetic takes few,
// also for 3 x 3 from 16 to 32 channels; for 3 x 3 from 32 to 32, with Winograd, about 40 us with its
// transposes. In bf16 its result would be bf16, ours is fp32.
bool prefers_split_rows(const ConvProblem& p) {
  return p.precision == Precision::bf16 ||
         !(p.kernel == 3 && p.stride == 1 && std::min(p.large_channels, p.small_channels) >= 32);
}

}  // namespace vqlab
