// 2-d convolution and transposed convolution, NHWC, with bias and ReLU (which keeps NaN), of fp32 tensors
// whose products may be of less precision (precision.hpp). CPU: matrix products over shards of kConvShard
// images. Each output element is one sum in a fixed order, the bias last; gradients of weights are added in
// shard order, those of the bias as column_sums.hpp says, on every device: no result depends on the number of
// threads, nor an image on the rest of its batch.
#pragma once

#include "../core/activation.hpp"
#include "precision.hpp"

namespace vqlab {

inline constexpr int64_t kConvShard = 8;

enum class ConvKind { normal, transposed };

// Square kernel. A normal convolution shrinks a side to (side + 2 padding - kernel) / stride + 1 (rounded
// down); a transposed one grows it to (side - 1) * stride - 2 padding + kernel.
struct ConvGeometry {
  ConvKind kind = ConvKind::normal;
  int64_t kernel = 1;   // 1 to 15
  int64_t stride = 1;   // 1 to kernel
  int64_t padding = 0;  // 0 to kernel - 1

  int64_t output_side(int64_t input_side) const {
    return kind == ConvKind::normal ? (input_side + 2 * padding - kernel) / stride + 1
                                    : (input_side - 1) * stride - 2 * padding + kernel;
  }
};

// Weights are (O, kernel, kernel, I) for a normal convolution (cuDNN's KRSC) and (I, kernel, kernel, O) for a
// transposed one, which is the normal convolution from its output to its input run backwards: torch's OIHW
// and IOHW with the channel that comes second moved last.

// Channel padding, on the GPU only: the tensor that has image channels may have more channels than the
// weight; what is beyond is read as 0 and written as 0.

// To which multiple the engine pads. In fp32 cuDNN has the same engines for 1 and 3 channels, and padding to
// 8 costs: 34.1 instead of 39.1 thousand images/s for fmnist-s on an H200. In bf16 cuDNN would pad to 8
// itself, in a pass of its own each time.
inline int64_t padded_channels(Device device, int64_t channels, Precision precision) {
  const int64_t multiple = device == Device::cuda && precision == Precision::bf16 ? 8 : 1;
  return (channels + multiple - 1) / multiple * multiple;
}

// How a GPU's library computes it (conv_choice.hpp); null: by the rule. The CPU ignores it.
struct ConvChoice;

// output = activation(convolution(input) + bias)
struct ConvForwardOp {
  View<float> output;        // (B, OH, OW, O)
  View<const float> input;   // (B, H, W, I)
  View<const float> weight;  // see above
  View<const float> bias;    // (O), or absent
  ConvGeometry geometry;
  Activation activation;
  View<std::byte> scratch;  // conv_scratch_bytes(device, geometry, input, O, precision)
  Precision precision = Precision::fp32;
  const ConvChoice* choice = nullptr;

  // These three throw Error(failed) on shapes that disagree; run() also on too little scratch.
  void check() const;
  OpCost cost() const;         // of these three: products with pixels, not with padding
  std::string detail() const;  // "4x4/2 28x28x1 > 14x14x16"
};

// d_input = gradient of the input. A ReLU behind the convolution is undone before, in d_output. One in front
// of it, that gave the input, is undone here with `mask`: 0 where the mask is not positive, as ReluBackwardOp
// does.
struct ConvBackwardDataOp {
  View<float> d_input;         // (B, H, W, I)
  View<const float> d_output;  // (B, OH, OW, O)
  View<const float> weight;
  ConvGeometry geometry;
  View<std::byte> scratch;
  Precision precision = Precision::fp32;
  const ConvChoice* choice = nullptr;
  View<const float> mask{};  // (B, H, W, I), or absent

  void check() const;
  OpCost cost() const;
  std::string detail() const;
};

// How a GPU computes the gradient of a weight; the CPU ignores it. automatic: cuDNN, or split_rows
// (weight_gradient.hpp) where prefers_split_rows() of conv_problem.hpp says so.
enum class WeightGradient { automatic, cudnn, split_rows };

// d_weight, d_bias = gradients summed over the batch; overwritten, not added to.
struct ConvBackwardWeightOp {
  View<float> d_weight;        // as weight
  View<float> d_bias;          // (O), or absent
  View<const float> d_output;  // (B, OH, OW, O)
  View<const float> input;     // (B, H, W, I)
  ConvGeometry geometry;
  View<std::byte> scratch;
  WeightGradient method = WeightGradient::automatic;
  Precision precision = Precision::fp32;
  const ConvChoice* choice = nullptr;  // of the library, if the method is that

  void check() const;
  OpCost cost() const;
  std::string detail() const;
};

// False if the images are too large for the 32-bit offsets within a shard. `input` is (B, H, W, I).
bool conv_supports(const ConvGeometry& geometry, const View<const float>& input, int64_t output_channels);

// Scratch that each of the three ops needs at this shape; on the CPU for the present worker_count(). `input`
// is (B, H, W, I).
int64_t conv_scratch_bytes(Device device, const ConvGeometry& geometry, const View<const float>& input,
                           int64_t output_channels, Precision precision = Precision::fp32);
int64_t conv_scratch_bytes_cuda(const ConvGeometry& geometry, const View<const float>& input,
                                int64_t output_channels, Precision precision);

// "" if the library behind run_cuda can be used, else one line why not.
std::string conv_problem_cuda();

void run_cpu(const ConvForwardOp& op);
void run_cuda(const ConvForwardOp& op, Stream stream);
void run_cpu(const ConvBackwardDataOp& op);
void run_cuda(const ConvBackwardDataOp& op, Stream stream);
void run_cpu(const ConvBackwardWeightOp& op);
void run_cuda(const ConvBackwardWeightOp& op, Stream stream);

}  // namespace vqlab
