// The three ops on a GPU: weights padded to the channels of the tensors, the device's library, bias and ReLU.
#include "conv_bias.hpp"
#include "conv_problem.hpp"
#include "pad_channels.hpp"
#include "weight_gradient.hpp"

namespace vqlab {
namespace {

constexpr uintptr_t kPartAlignment = 256;

// The parts of an op's scratch: the library's workspace, and a weight with all channels of the tensors.
class Parts {
 public:
  Parts(const char* op, const View<std::byte>& scratch, const View<const float>& full_weight) {
    require_scratch(op, scratch, bytes(full_weight));
    const auto begin = reinterpret_cast<uintptr_t>(scratch.data);
    const uintptr_t gap = (kPartAlignment - begin % kPartAlignment) % kPartAlignment;
    workspace_ = scratch.data + gap;
    weight_ = View<float>(reinterpret_cast<float*>(workspace_ + kConvWorkspaceBytes),
                          {full_weight.size() / full_weight[3], full_weight[3]});
  }
  static int64_t bytes(const View<const float>& full_weight) {
    return int64_t(kPartAlignment) + kConvWorkspaceBytes + full_weight.bytes();
  }

  std::byte* workspace() const { return workspace_; }
  View<std::byte> workspace_view() const { return {workspace_, {kConvWorkspaceBytes}}; }
  const View<float>& weight() const {
    return weight_;
  }  // as a matrix: rows(), which keeps the last dimension

 private:
  std::byte* workspace_;
  View<float> weight_;
};

void require_aligned(const char* op, std::initializer_list<const float*> operands) {
  for (const float* data : operands)
    VQ_REQUIRE(reinterpret_cast<uintptr_t>(data) % kConvAlignment == 0,
               "{}: an operand at {} is not aligned to {} bytes", op, static_cast<const void*>(data),
               kConvAlignment);
}

// The shape of a weight that has all channels of the tensors.
View<const float> full_weight(const ConvGeometry& g, int64_t input_channels, int64_t output_channels) {
  const bool normal = g.kind == ConvKind::normal;
  return {nullptr,
          {normal ? output_channels : input_channels, g.kernel, g.kernel,
           normal ? input_channels : output_channels}};
}

int64_t weight_inputs(const ConvGeometry& g, const View<const float>& weight) {
  return weight[g.kind == ConvKind::normal ? 3 : 0];
}
int64_t weight_outputs(const ConvGeometry& g, const View<const float>& weight) {
  return weight[g.kind == ConvKind::normal ? 0 : 3];
}

// The weight itself, or if the tensors have more channels a copy in the scratch, with zeros.
const float* padded(const View<const float>& weight, const View<const float>& full, const Parts& parts,
                    Stream stream) {
  if (same_shape(weight, full)) return weight.data;
  pad_channels_cuda(parts.weight(), weight.rows(), stream);
  return parts.weight().data;
}

}  // namespace

int64_t conv_scratch_bytes_cuda(const ConvGeometry& geometry, const View<const float>& input,
                                int64_t output_channels) {
  return Parts::bytes(full_weight(geometry, input[3], output_channels));
}

void run_cuda(const ConvForwardOp& op, Stream stream) {
  constexpr const char* kName = "convolution";
  require_aligned(kName, {op.output.data, op.input.data, op.weight.data});
  const View<const float> full = full_weight(op.geometry, op.input[3], op.output[3]);
  const Parts parts(kName, op.scratch, full);
  convolve_cuda(kName, forward_problem(op.geometry, op.input, op.output), op.output.data, op.input.data,
                padded(op.weight, full, parts, stream), parts.workspace(), stream);
  const int64_t channels = weight_outputs(op.geometry, op.weight);
  if (op.bias || op.activation == Activation::relu || channels < op.output[3])
    add_conv_bias_cuda(op.output.rows(), op.bias, channels, op.activation, stream);
}

void run_cuda(const ConvBackwardDataOp& op, Stream stream) {
  constexpr const char* kName = "convolution backward data";
  require_aligned(kName, {op.d_input.data, op.d_output.data, op.weight.data});
  const View<const float> full = full_weight(op.geometry, op.d_input[3], op.d_output[3]);
  const Parts parts(kName, op.scratch, full);
  convolve_cuda(kName, backward_data_problem(op.geometry, op.d_input, op.d_output), op.d_input.data,
                op.d_output.data, padded(op.weight, full, parts, stream), parts.workspace(), stream);
  // Zero weights give zeros only where d_output is finite.
  const int64_t channels = weight_inputs(op.geometry, op.weight);
  if (channels < op.d_input[3]) add_conv_bias_cuda(op.d_input.rows(), {}, channels, Activation::none, stream);
}

void run_cuda(const ConvBackwardWeightOp& op, Stream stream) {
  constexpr const char* kName = "convolution backward weight";
  const View<const float> full = full_weight(op.geometry, op.input[3], op.d_output[3]);
  const Parts parts(kName, op.scratch, full);
  const bool normal = op.geometry.kind == ConvKind::normal;
  const float* large = normal ? op.input.data : op.d_output.data;
  const float* small = normal ? op.d_output.data : op.input.data;
  const ConvProblem problem = backward_weight_problem(op.geometry, op.input, op.d_output);
  const bool split_rows = op.method == WeightGradient::split_rows ||
                          (op.method == WeightGradient::automatic && prefers_split_rows(problem));
  if (split_rows) {
    weight_gradient_cuda(op.d_weight, problem, large, small, parts.workspace_view(), stream);
  } else {
    require_aligned(kName, {op.d_weight.data, large, small});
    const bool fits = same_shape(op.d_weight, full);
    convolve_weight_gradient_cuda(kName, problem, fits ? op.d_weight.data : parts.weight().data, large, small,
                                  parts.workspace(), stream);
    if (!fits) pad_channels_cuda(op.d_weight.rows(), parts.weight(), stream);  // crops
  }
  // In the same stream, so the gradient above is done with the workspace.
  if (op.d_bias) conv_bias_gradient_cuda(op.d_bias, op.d_output.rows(), parts.workspace_view(), stream);
}

}  // namespace vqlab
