// On the emulated device cuDNN is replaced by the CPU's convolutions, run in stream order. So neither cuDNN
// nor how it is called is covered there; padding, bias, ReLU and the gradient of the bias are.
#include <vector>

#include "kernels/conv/conv_problem.hpp"
#include "streams.hpp"

namespace vqlab {
namespace {

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
        memory(size_t(conv_scratch_bytes(Device::cpu, geometry, large, p.small_channels))),
        scratch(memory.data(), {int64_t(memory.size())}) {}
};

}  // namespace

std::string conv_problem_cuda() { return ""; }

void convolve_cuda(const char* op, const ConvProblem& problem, float* target, const float* source,
                   const float* filter, std::byte* workspace, Stream stream) {
  simt::enqueue_library(
      stream.handle, op,
      {simt::reads(source), simt::reads(filter), simt::writes(target), simt::writes(workspace)}, [=] {
        if (problem.operation == ConvOperation::fprop) {
          const Operands o(problem, source, target, filter);
          run(ConvForwardOp{o.small, o.large, o.filter, {}, o.geometry, Activation::none, o.scratch},
              Stream{});
        } else {
          const Operands o(problem, target, source, filter);
          run(ConvBackwardDataOp{o.large, o.small, o.filter, o.geometry, o.scratch}, Stream{});
        }
      });
}

void convolve_weight_gradient_cuda(const char* op, const ConvProblem& problem, float* d_filter,
                                   const float* large, const float* small, std::byte* workspace,
                                   Stream stream) {
  simt::enqueue_library(
      stream.handle, op,
      {simt::reads(large), simt::reads(small), simt::writes(d_filter), simt::writes(workspace)}, [=] {
        const Operands o(problem, large, small, d_filter);
        run(ConvBackwardWeightOp{o.filter, {}, o.small, o.large, o.geometry, o.scratch}, Stream{});
      });
}

}  // namespace vqlab
