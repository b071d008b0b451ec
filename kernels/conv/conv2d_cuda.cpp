// The three ops on a GPU: weights padded to the channels of the tensors, the device's library, bias and ReLU.
#include "../nn/pointwise.hpp"
#include "cast.hpp"
#include "conv_bias.hpp"
#include "conv_choice.hpp"
#include "conv_problem.hpp"
#include "pad_channels.hpp"
#include "weight_gradient.hpp"

namespace vqlab {
namespace {

constexpr int64_t kPartAlignment = 256;

// The parts of an op's scratch: the library's workspace, a weight with all channels of the tensors, and in
// bf16 copies of that, of the source and of the target.
class Parts {
 public:
  Parts(const char* op, const View<std::byte>& scratch, const View<const float>& full_weight,
        Precision precision = Precision::fp32, int64_t source_size = 0, int64_t target_size = 0)
      : weight(nullptr, {full_weight.size() / full_weight[3], full_weight[3]}),
        weight_bf16(nullptr, {full_weight.size()}),
        source(nullptr, {source_size}),
        target(nullptr, {target_size}) {
    require_scratch(op, scratch, bytes(full_weight, precision, source_size + target_size));
    const auto begin = reinterpret_cast<uintptr_t>(scratch.data);
    next_ = scratch.data + (kPartAlignment - int64_t(begin % kPartAlignment)) % kPartAlignment;
    workspace = take<std::byte>(kConvWorkspaceBytes);
    weight.data = take<float>(full_weight.bytes());
    if (precision != Precision::bf16) return;
    weight_bf16.data = take<uint16_t>(weight_bf16.bytes());
    source.data = take<uint16_t>(source.bytes());
    target.data = take<uint16_t>(target.bytes());
  }
  // `elements`: of source and target.
  static int64_t bytes(const View<const float>& full_weight, Precision precision, int64_t elements) {
    constexpr int64_t kHalf = sizeof(uint16_t);
    const int64_t copies =
        precision == Precision::bf16 ? kHalf * (full_weight.size() + elements) + 3 * kPartAlignment : 0;
    return 2 * kPartAlignment + kConvWorkspaceBytes + full_weight.bytes() + copies;
  }

  View<std::byte> workspace_view() const { return {workspace, {kConvWorkspaceBytes}}; }

  std::byte* workspace;
  View<float> weight;  // as a matrix: rows(), which keeps the last dimension
  View<uint16_t> weight_bf16, source, target;

 private:
  template <class T>
  T* take(int64_t count) {
    T* const part = reinterpret_cast<T*>(next_);
    next_ += (count + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
    return part;
  }

  std::byte* next_;
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
  pad_channels_cuda(parts.weight, weight.rows(), stream);
  return parts.weight.data;
}

const ConvChoice& choice_of(const ConvChoice* chosen) {
  static const ConvChoice by_rule;
  return chosen == nullptr ? by_rule : *chosen;
}

// What an op wants done behind its convolution, in the first `channels` channels of the target; zeros belong
// into those beyond.
struct Behind {
  View<const float> bias, mask;
  int64_t channels;
  Activation activation;

  // What a library could fuse: nothing with padding channels, which the bias has not, and no mask in bf16,
  // since masks are fp32.
  ConvFusion wanted(int64_t target_channels, Precision precision) const {
    if (mask) return precision == Precision::bf16 ? ConvFusion::none : ConvFusion::mask;
    if (!bias || channels < target_channels) return ConvFusion::none;
    return activation == Activation::relu ? ConvFusion::bias_relu : ConvFusion::bias;
  }
};

// target = the convolution of source, and what is wanted behind it.
void convolve(const char* op, ConvProblem problem, const ConvChoice* chosen, const View<float>& target,
              const View<const float>& source, const float* filter, const Behind& wanted, const Parts& parts,
              Stream stream) {
  const ConvChoice& choice = choice_of(chosen);
  problem.fusion = wanted.wanted(target[3], problem.precision);
  VQ_REQUIRE(!choice.fused || problem.fusion != ConvFusion::none, "{}: there is nothing to fuse", op);
  if (choice.fused) require_aligned(op, {wanted.bias.data, wanted.mask.data});
  const View<const float> bias = choice.fused ? View<const float>() : wanted.bias;
  const Activation activation = choice.fused ? Activation::none : wanted.activation;
  ConvOperands operands{.target = target.data,
                        .source = source.data,
                        .filter = filter,
                        .bias = wanted.bias.data,
                        .mask = wanted.mask.data};
  if (problem.precision == Precision::bf16) {
    to_bf16_cuda(parts.source, source, stream);
    to_bf16_cuda(parts.weight_bf16, {filter, {parts.weight_bf16.size()}}, stream);
    operands.target = parts.target.data, operands.source = parts.source.data;
    operands.filter = parts.weight_bf16.data;
    convolve_cuda(op, problem, choice, operands, parts.workspace, stream);
    const View<float> rows = target.rows();
    from_bf16_cuda(rows, {parts.target.data, {rows[0], rows[1]}}, bias, wanted.channels, activation, stream);
  } else {
    convolve_cuda(op, problem, choice, operands, parts.workspace, stream);
    if (bias || activation == Activation::relu || wanted.channels < target[3])
      add_conv_bias_cuda(target.rows(), bias, wanted.channels, activation, stream);
  }
  if (wanted.mask && !choice.fused)
    run_cuda(ReluBackwardOp{.d_input = target, .d_output = target, .output = wanted.mask}, stream);
}

ConvProblem in_precision(ConvProblem problem, Precision precision) {
  problem.precision = precision;
  return problem;
}

}  // namespace

int64_t conv_scratch_bytes_cuda(const ConvGeometry& geometry, const View<const float>& input,
                                int64_t output_channels, Precision precision) {
  const int64_t output_size =
      input[0] * geometry.output_side(input[1]) * geometry.output_side(input[2]) * output_channels;
  return Parts::bytes(full_weight(geometry, input[3], output_channels), precision,
                      input.size() + output_size);
}

void run_cuda(const ConvForwardOp& op, Stream stream) {
  constexpr const char* kName = "convolution";
  require_aligned(kName, {op.output.data, op.input.data, op.weight.data});
  const View<const float> full = full_weight(op.geometry, op.input[3], op.output[3]);
  const Parts parts(kName, op.scratch, full, op.precision, op.input.size(), op.output.size());
  convolve(kName, in_precision(forward_problem(op.geometry, op.input, op.output), op.precision), op.choice,
           op.output, op.input, padded(op.weight, full, parts, stream),
           {.bias = op.bias,
            .mask = {},
            .channels = weight_outputs(op.geometry, op.weight),
            .activation = op.activation},
           parts, stream);
}

// Zero weights give zeros in padding channels only where d_output is finite.
void run_cuda(const ConvBackwardDataOp& op, Stream stream) {
  constexpr const char* kName = "convolution backward data";
  require_aligned(kName, {op.d_input.data, op.d_output.data, op.weight.data});
  const View<const float> full = full_weight(op.geometry, op.d_input[3], op.d_output[3]);
  const Parts parts(kName, op.scratch, full, op.precision, op.d_output.size(), op.d_input.size());
  convolve(kName, in_precision(backward_data_problem(op.geometry, op.d_input, op.d_output), op.precision),
           op.choice, op.d_input, op.d_output, padded(op.weight, full, parts, stream),
           {.bias = {},
            .mask = op.mask,
            .channels = weight_inputs(op.geometry, op.weight),
            .activation = Activation::none},
           parts, stream);
}

void run_cuda(const ConvBackwardWeightOp& op, Stream stream) {
  constexpr const char* kName = "convolution backward weight";
  const View<const float> full = full_weight(op.geometry, op.input[3], op.d_output[3]);
  const Parts parts(kName, op.scratch, full);
  const bool normal = op.geometry.kind == ConvKind::normal;
  const float* large = normal ? op.input.data : op.d_output.data;
  const float* small = normal ? op.d_output.data : op.input.data;
  const ConvProblem problem =
      in_precision(backward_weight_problem(op.geometry, op.input, op.d_output), op.precision);
  const bool split_rows = op.method == WeightGradient::split_rows ||
                          (op.method == WeightGradient::automatic && prefers_split_rows(problem));
  if (split_rows) {
    weight_gradient_cuda(op.d_weight, problem, large, small, parts.workspace_view(), stream);
  } else {
    require_aligned(kName, {op.d_weight.data, large, small});
    const bool fits = same_shape(op.d_weight, full);
    convolve_weight_gradient_cuda(kName, problem, choice_of(op.choice),
                                  fits ? op.d_weight.data : parts.weight.data, large, small, parts.workspace,
                                  stream);
    if (!fits) pad_channels_cuda(op.d_weight.rows(), parts.weight, stream);  // crops
  }
  // In the same stream, so the gradient above is done with the workspace.
  if (op.d_bias) conv_bias_gradient_cuda(op.d_bias, op.d_output.rows(), parts.workspace_view(), stream);
}

}  // namespace vqlab
