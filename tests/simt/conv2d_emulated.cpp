// On the emulated device cuDNN is replaced by the CPU's convolutions, run in stream order. So neither cuDNN
// nor how it is called is covered there; padding, bias, ReLU and the gradient of the bias are. The CPU takes
// another order of sums towards few channels: padding channels are left out, so that it does so here too.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/conv/conv_choice.hpp"
#include "streams.hpp"

namespace vqlab {
namespace {

constexpr int64_t kDropsNan = 3, kWrongSum = 4, kUnbuildable = 5;

// The operands of a problem as those of a normal convolution from the large side to the small one.
struct Operands {
  View<float> large, small, filter;
  ConvGeometry geometry;
  std::vector<std::byte> memory;
  View<std::byte> scratch;

  // The CPU ops that follow write one of the three.
  Operands(const ConvProblem& p, const float* large_data, const float* small_data, const float* filter_data)
      : large(const_cast<float*>(large_data), {p.batch, p.large_height, p.large_width, p.large_channels}),
        small(const_cast<float*>(small_data), {p.batch, p.small_height, p.small_width, p.small_channels}),
        filter(const_cast<float*>(filter_data), {p.small_channels, p.kernel, p.kernel, p.large_channels}),
        geometry{ConvKind::normal, p.kernel, p.stride, p.padding},
        memory(size_t(conv_scratch_bytes(Device::cpu, geometry, large, p.small_channels, p.precision))),
        scratch(memory.data(), {int64_t(memory.size())}) {}
};

// Large channels without those that have no weight, at the end: padding.
int64_t channels_in_use(const ConvProblem& p, const float* filter) {
  const int64_t C = p.large_channels, size = p.small_channels * p.kernel * p.kernel * C;
  int64_t used = 1;
  for (int64_t i = 0; i < size; ++i)
    if (filter[i] != 0.0f) used = std::max(used, i % C + 1);
  return used;
}

// A matrix with `from` columns as one with `to`: cropped, or with zeros in the new columns.
std::vector<float> with_columns(const float* matrix, int64_t rows, int64_t from, int64_t to) {
  std::vector<float> result(size_t(rows * to), 0.0f);
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(matrix + row * from, std::min(from, to), result.begin() + row * to);
  return result;
}

void run_dgrad(ConvProblem problem, float* target, const float* source, const float* filter) {
  const int64_t C = problem.large_channels, used = channels_in_use(problem, filter);
  const int64_t pixels = problem.batch * problem.large_height * problem.large_width;
  const std::vector<float> used_filter =
      with_columns(filter, problem.small_channels * problem.kernel * problem.kernel, C, used);
  std::vector<float> used_target(size_t(pixels * used));
  problem.large_channels = used;
  const Operands o(problem, used_target.data(), source, used_filter.data());
  run(ConvBackwardDataOp{o.large, o.small, o.filter, o.geometry, o.scratch, problem.precision}, Stream{});
  std::ranges::copy(with_columns(used_target.data(), pixels, used, C), target);
}

void run_in_floats(const ConvProblem& problem, float* target, const float* source, const float* filter) {
  if (problem.operation == ConvOperation::dgrad) return run_dgrad(problem, target, source, filter);
  const Operands o(problem, source, target, filter);
  run(
      ConvForwardOp{
          o.small, o.large, o.filter, {}, o.geometry, Activation::none, o.scratch, problem.precision},
      Stream{});
}

int64_t large_size(const ConvProblem& p) {
  return p.batch * p.large_height * p.large_width * p.large_channels;
}
int64_t small_size(const ConvProblem& p) {
  return p.batch * p.small_height * p.small_width * p.small_channels;
}

std::vector<float> from_bf16(const void* data, int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = std::bit_cast<float>(uint32_t(static_cast<const uint16_t*>(data)[i]) << 16);
  return values;
}

int64_t target_size(const ConvProblem& p) {
  return p.operation == ConvOperation::fprop ? small_size(p) : large_size(p);
}

// What a fused graph does in its own type.
void add_bias(const ConvProblem& p, const ConvOperands& operands, bool drop_nan) {
  const int64_t channels = p.operation == ConvOperation::fprop ? p.small_channels : p.large_channels;
  const bool relu = p.fusion == ConvFusion::bias_relu, bf16 = p.precision == Precision::bf16;
  for (int64_t i = 0; i < target_size(p); ++i) {
    auto* const half = static_cast<uint16_t*>(operands.target) + i;
    auto* const whole = static_cast<float*>(operands.target) + i;
    float x = (bf16 ? std::bit_cast<float>(uint32_t(*half) << 16) : *whole) + operands.bias[i % channels];
    if (relu && (x <= 0.0f || (drop_nan && std::isnan(x)))) x = 0.0f;
    if (bf16)
      *half = to_bf16(std::bit_cast<uint32_t>(x));
    else
      *whole = x;
  }
}

void apply_mask(const ConvProblem& p, const ConvOperands& operands, bool drop_nan) {
  for (int64_t i = 0; i < target_size(p); ++i) {
    float& x = static_cast<float*>(operands.target)[i];
    if (!(operands.mask[i] > 0.0f) || (drop_nan && std::isnan(x))) x = 0.0f;
  }
}

void spoil(const ConvProblem& p, void* target) {
  if (p.precision == Precision::bf16)
    static_cast<uint16_t*>(target)[target_size(p) / 2] ^= 0x0080;  // twice or half the value
  else
    static_cast<float*>(target)[target_size(p) / 2] += 0.25f;
}

void run_in_bf16(const ConvProblem& p, const ConvOperands& operands) {
  const bool to_small = p.operation == ConvOperation::fprop;
  const std::vector<float> source = from_bf16(operands.source, to_small ? large_size(p) : small_size(p)),
                           filter = from_bf16(operands.filter,
                                              p.small_channels * p.kernel * p.kernel * p.large_channels);
  std::vector<float> target(size_t(to_small ? small_size(p) : large_size(p)));
  run_in_floats(p, target.data(), source.data(), filter.data());
  for (size_t i = 0; i < target.size(); ++i)
    static_cast<uint16_t*>(operands.target)[i] = to_bf16(std::bit_cast<uint32_t>(target[i]));
}

}  // namespace

// A test of what happens without cuDNN sets this variable.
std::string conv_problem_cuda() {
  const char* problem = std::getenv("SIMT_CONV_PROBLEM");
  return problem == nullptr ? "" : problem;
}

std::string conv_library() { return "CPU 1.0"; }

// Engine 0 is the rule's; 1 and 2 give the same bits. Those from 3 on are what must not be taken: a ReLU that
// drops NaN, a wrong sum, and one that is listed but cannot be built.
ConvChoice choose_by_rule(const ConvProblem&) { return {.fused = false, .engine = 0, .knobs = {}}; }

std::vector<ConvChoice> list_choices(const ConvProblem& problem, bool compile) {
  std::vector<ConvChoice> choices = {choose_by_rule(problem),
                                     {.fused = false, .engine = 1, .knobs = {{1, 7}, {4, 2}}}};
  if (problem.fusion != ConvFusion::none) {
    if (compile) choices.push_back({.fused = true, .engine = 2, .knobs = {}});
    choices.push_back({.fused = true, .engine = kDropsNan, .knobs = {}});
  }
  for (const int64_t engine : {kWrongSum, kUnbuildable})
    choices.push_back({.fused = false, .engine = engine, .knobs = {}});
  return choices;
}

void prepare_choice(const ConvProblem& problem, const ConvChoice& choice) {
  if (choice.engine >= kUnbuildable || choice.engine < -1)
    throw Error(ErrorKind::failed, fmt::format("cannot compute {} by {}", problem.text(), choice.text()),
                "use the version that it was chosen with");
}

void convolve_cuda(const char* op, const ConvProblem& problem, const ConvChoice& choice,
                   const ConvOperands& operands, std::byte* workspace, Stream stream) {
  prepare_choice(problem, choice);
  std::vector<simt::Access> accesses = {simt::reads(operands.source), simt::reads(operands.filter),
                                        simt::writes(operands.target), simt::scratch(workspace)};
  const bool masks = problem.fusion == ConvFusion::mask;
  if (choice.fused) accesses.push_back(simt::reads(masks ? operands.mask : operands.bias));
  simt::enqueue_library(stream.handle, op, std::move(accesses),
                        [=, engine = choice.engine, fused = choice.fused] {
                          if (problem.precision == Precision::bf16)
                            run_in_bf16(problem, operands);
                          else
                            run_in_floats(problem, static_cast<float*>(operands.target),
                                          static_cast<const float*>(operands.source),
                                          static_cast<const float*>(operands.filter));
                          if (fused) (masks ? apply_mask : add_bias)(problem, operands, engine == kDropsNan);
                          if (engine == kWrongSum) spoil(problem, operands.target);
                        });
}

void convolve_weight_gradient_cuda(const char* op, const ConvProblem& problem, const ConvChoice& choice,
                                   float* d_filter, const float* large, const float* small,
                                   std::byte* workspace, Stream stream) {
  prepare_choice(problem, choice);
  simt::enqueue_library(
      stream.handle, op,
      {simt::reads(large), simt::reads(small), simt::writes(d_filter), simt::scratch(workspace)}, [=] {
        const Operands o(problem, large, small, d_filter);
        run(ConvBackwardWeightOp{.d_weight = o.filter,
                                 .d_bias = {},
                                 .d_output = o.small,
                                 .input = o.large,
                                 .geometry = o.geometry,
                                 .scratch = o.scratch,
                                 .precision = problem.precision},
            Stream{});
      });
}

// So that the trainer has the bits of the CPU's.
bool prefers_split_rows(const ConvProblem&) { return false; }

}  // namespace vqlab
