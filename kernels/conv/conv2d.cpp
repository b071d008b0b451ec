#include "conv2d.hpp"

#include <limits>

#include "../core/parallel.hpp"
#include "conv_pass.hpp"

namespace vqlab {
namespace {

int64_t shard_count(int64_t batch) { return (batch + kConvShard - 1) / kConvShard; }

// Calls run(shard, its first image, its images, worker) in parallel.
template <class Run>
void for_each_shard(int64_t batch, const Run& run) {
  parallel_for(shard_count(batch), [&](int64_t shard, int worker) {
    const int64_t first = shard * kConvShard;
    run(shard, first, std::min(kConvShard, batch - first), worker);
  });
}

ConvSides conv_sides(const ConvGeometry& g, const View<const float>& input, const View<const float>& output) {
  const bool normal = g.kind == ConvKind::normal;
  const View<const float>&large = normal ? input : output, &small = normal ? output : input;
  return {.large = {large[1], large[2], large[3]},
          .small = {small[1], small[2], small[3]},
          .kernel = g.kernel,
          .stride = g.stride,
          .padding = g.padding};
}

bool scatters(const ConvSides& sides, Direction direction) {
  return direction == Direction::to_large && ScatterPass::serves(sides);
}

// Operands as they are multiplied: in fp32 themselves, else rounded copies in the op's scratch, one for each
// worker (or one for all).
class RoundedOperand {
 public:
  RoundedOperand(Precision precision, int64_t workers, int64_t size, ScratchCutter& scratch)
      : precision_(precision), copies_(scratch, workers, precision == Precision::fp32 ? 0 : size) {}

  const float* of(const float* values, int64_t count, int worker = 0) const {
    if (precision_ == Precision::fp32) return values;
    round_to(precision_, copies_[worker], values, count);
    return copies_[worker];
  }

 private:
  Precision precision_;
  FloatArrays copies_;
};

RoundedOperand rounded_weight(const ConvSides& s, Precision precision, ScratchCutter& scratch) {
  return {precision, 1, s.small.c * s.patch_size(), scratch};
}
RoundedOperand rounded_shards(const ImageSize& image, Precision precision, ScratchCutter& scratch) {
  return {precision, worker_count(), kConvShard * image.size(), scratch};
}

int64_t convolve_bytes(const ConvSides& sides, Direction direction, Precision precision) {
  ScratchCutter scratch({});
  rounded_weight(sides, precision, scratch);
  rounded_shards(direction == Direction::to_small ? sides.large : sides.small, precision, scratch);
  if (scatters(sides, direction))
    ScatterPass(sides, scratch);
  else
    SidePass(sides, direction, scratch);
  return scratch.bytes();
}

int64_t weight_gradient_bytes(const ConvSides& sides, const View<const float>& output, Precision precision) {
  ScratchCutter scratch({});
  rounded_shards(sides.large, precision, scratch);
  rounded_shards(sides.small, precision, scratch);
  WeightPass(sides, shard_count(output[0]), scratch);
  BiasPass(output.rows()[0], output[3], scratch);
  return scratch.bytes();
}

// pixels (count, channels) = activation(pixels + bias), as the passes do it in their last step.
VQ_MULTIVERSION void add_bias(float* pixels, int64_t count, int64_t channels, const float* bias, bool relu) {
  for (int64_t pixel = 0; pixel < count; ++pixel, pixels += channels)
    for (int64_t c = 0; c < channels; ++c) {
      const float x = bias == nullptr ? pixels[c] : pixels[c] + bias[c];
      pixels[c] = relu && x <= 0.0f ? 0.0f : x;
    }
}

// gradient = 0 where mask is not positive.
VQ_MULTIVERSION void apply_mask(float* gradient, const float* mask, int64_t count) {
  for (int64_t i = 0; i < count; ++i) gradient[i] = mask[i] > 0.0f ? gradient[i] : 0.0f;
}

// output = activation(convolution of input in this direction + bias), 0 where a mask is not positive.
void convolve(const ConvSides& sides, Direction direction, const View<float>& output,
              const View<const float>& input, const View<const float>& weight, const View<const float>& bias,
              Activation activation, Precision precision, const View<const float>& mask,
              const View<std::byte>& scratch) {
  ScratchCutter cutter(scratch);
  const int64_t batch = input[0], input_size = input.size() / batch, output_size = output.size() / batch;
  const bool relu = activation == Activation::relu, rounds_result = precision == Precision::bf16;
  const RoundedOperand weights = rounded_weight(sides, precision, cutter);
  const RoundedOperand inputs =
      rounded_shards(direction == Direction::to_small ? sides.large : sides.small, precision, cutter);
  const auto run_shards = [&](const auto& pass) {
    pass.prepare(weights.of(weight.data, weight.size()), rounds_result ? View<const float>() : bias);
    for_each_shard(batch, [&](int64_t, int64_t first, int64_t images, int worker) {
      float* const result = output.data + first * output_size;
      pass.run(result, inputs.of(input.data + first * input_size, images * input_size, worker), images,
               relu && !rounds_result, worker);
      const int64_t size = images * output_size;
      if (rounds_result) round_to(precision, result, result, size);
      if (rounds_result && (bias || relu)) add_bias(result, size / output[3], output[3], bias.data, relu);
      if (mask) apply_mask(result, mask.data + first * output_size, size);
    });
  };
  if (scatters(sides, direction))
    run_shards(ScatterPass(sides, cutter));
  else
    run_shards(SidePass(sides, direction, cutter));
}

Direction forward_direction(const ConvGeometry& g) {
  return g.kind == ConvKind::normal ? Direction::to_small : Direction::to_large;
}
Direction backward_direction(const ConvGeometry& g) {
  return g.kind == ConvKind::normal ? Direction::to_large : Direction::to_small;
}

// Offsets within a shard are 32 bits wide.
bool fits_offsets(const ConvSides& sides) {
  const int64_t patches =
      scatters(sides, Direction::to_large) ? sides.small.pixels() * sides.patch_size() : 0;
  return kConvShard * std::max({sides.large.size(), sides.small.size(), patches}) <=
         std::numeric_limits<int32_t>::max();
}

void check_shapes(const char* what, const ConvGeometry& g, const View<const float>& input,
                  const View<const float>& output, const View<const float>& weight,
                  const View<const float>& bias) {
  VQ_REQUIRE(g.kernel >= 1 && g.kernel <= 15 && g.stride >= 1 && g.stride <= g.kernel && g.padding >= 0 &&
                 g.padding < g.kernel,
             "{}: kernel {}, stride {} or padding {} is out of range", what, g.kernel, g.stride, g.padding);
  const bool normal = g.kind == ConvKind::normal;
  const auto side_fits = [&](int64_t in, int64_t out) {
    const int64_t large = normal ? in : out;  // what the kernel moves over
    return in >= 1 && out >= 1 && large + 2 * g.padding >= g.kernel && out == g.output_side(in);
  };
  VQ_REQUIRE(input.rank == 4 && output.rank == 4 && input[0] >= 1 && output[0] == input[0] && input[3] >= 1 &&
                 output[3] >= 1 && side_fits(input[1], output[1]) && side_fits(input[2], output[2]),
             "{}: output {} does not follow from input {} by kernel {}, stride {}, padding {}", what,
             output.shape(), input.shape(), g.kernel, g.stride, g.padding);
  VQ_REQUIRE(weight.rank == 4 && weight[0] <= (normal ? output[3] : input[3]) && weight[1] == g.kernel &&
                 weight[2] == g.kernel && weight[3] <= (normal ? input[3] : output[3]),
             "{}: weight {} does not fit input {} and output {}", what, weight.shape(), input.shape(),
             output.shape());
  VQ_REQUIRE(!bias || bias.size() == weight[normal ? 0 : 3], "{}: bias {} does not fit weight {}", what,
             bias.shape(), weight.shape());
  VQ_REQUIRE(fits_offsets(conv_sides(g, input, output)), "{}: images of input {} and output {} are too large",
             what, input.shape(), output.shape());
}

void require_no_padding(const char* what, const ConvGeometry& g, const View<const float>& input,
                        const View<const float>& output, const View<const float>& weight) {
  const bool normal = g.kind == ConvKind::normal;
  VQ_REQUIRE(weight[0] == (normal ? output : input)[3] && weight[3] == (normal ? input : output)[3],
             "{}: weight {} has not the channels of input {} and output {}", what, weight.shape(),
             input.shape(), output.shape());
}

// Pairs of a small pixel and a tap of its patch that lies within the large side, on one axis.
int64_t taps_of_axis(int64_t large, int64_t small, const ConvSides& s) {
  int64_t taps = 0;
  for (int64_t i = 0; i < small; ++i)
    taps += std::max<int64_t>(0, std::min(s.kernel, large + s.padding - i * s.stride) -
                                     std::max<int64_t>(0, s.padding - i * s.stride));
  return taps;
}

// The same for each direction.
double convolution_flop(const ConvGeometry& g, const View<const float>& input,
                        const View<const float>& output, const View<const float>& weight) {
  const ConvSides s = conv_sides(g, input, output);
  return 2.0 * double(input[0] * weight[0] * weight[3]) * double(taps_of_axis(s.large.h, s.small.h, s)) *
         double(taps_of_axis(s.large.w, s.small.w, s));
}

std::string convolution_detail(const ConvGeometry& g, const View<const float>& input,
                               const View<const float>& output) {
  return fmt::format("{0}x{0}{1} {2}x{3}x{4} > {5}x{6}x{7}", g.kernel,
                     g.stride == 1 ? "" : fmt::format("/{}", g.stride), input[1], input[2], input[3],
                     output[1], output[2], output[3]);
}

}  // namespace

void ConvForwardOp::check() const { check_shapes("convolution", geometry, input, output, weight, bias); }

void ConvBackwardDataOp::check() const {
  check_shapes("convolution backward data", geometry, d_input, d_output, weight, {});
  VQ_REQUIRE(!mask || same_shape(mask, View<const float>(d_input)),
             "convolution backward data: mask {} and d_input {} differ", mask.shape(), d_input.shape());
}

void ConvBackwardWeightOp::check() const {
  check_shapes("convolution backward weight", geometry, input, d_output, d_weight, d_bias);
}

OpCost ConvForwardOp::cost() const {
  return {.bytes = operand_bytes(*this), .flop = convolution_flop(geometry, input, output, weight)};
}
OpCost ConvBackwardDataOp::cost() const {
  return {.bytes = operand_bytes(*this), .flop = convolution_flop(geometry, d_input, d_output, weight)};
}
OpCost ConvBackwardWeightOp::cost() const {
  return {.bytes = operand_bytes(*this), .flop = convolution_flop(geometry, input, d_output, d_weight)};
}

std::string ConvForwardOp::detail() const { return convolution_detail(geometry, input, output); }
std::string ConvBackwardDataOp::detail() const { return convolution_detail(geometry, d_input, d_output); }
std::string ConvBackwardWeightOp::detail() const { return convolution_detail(geometry, input, d_output); }

bool conv_supports(const ConvGeometry& geometry, const View<const float>& input, int64_t output_channels) {
  const View<const float> output(
      nullptr, {input[0], geometry.output_side(input[1]), geometry.output_side(input[2]), output_channels});
  return fits_offsets(conv_sides(geometry, input, output));
}

int64_t conv_scratch_bytes(Device device, const ConvGeometry& geometry, const View<const float>& input,
                           int64_t output_channels, Precision precision) {
  if constexpr (kWithCuda)
    if (device == Device::cuda) return conv_scratch_bytes_cuda(geometry, input, output_channels, precision);
  const View<const float> output(
      nullptr, {input[0], geometry.output_side(input[1]), geometry.output_side(input[2]), output_channels});
  const ConvSides sides = conv_sides(geometry, input, output);
  return std::max({convolve_bytes(sides, Direction::to_small, precision),
                   convolve_bytes(sides, Direction::to_large, precision),
                   weight_gradient_bytes(sides, output, precision)});
}

void run_cpu(const ConvForwardOp& op) {
  const ConvSides sides = conv_sides(op.geometry, op.input, op.output);
  require_no_padding("convolution", op.geometry, op.input, op.output, op.weight);
  require_scratch("convolution", op.scratch,
                  convolve_bytes(sides, forward_direction(op.geometry), op.precision));
  convolve(sides, forward_direction(op.geometry), op.output, op.input, op.weight, op.bias, op.activation,
           op.precision, {}, op.scratch);
}

void run_cpu(const ConvBackwardDataOp& op) {
  const ConvSides sides = conv_sides(op.geometry, op.d_input, op.d_output);
  require_no_padding("convolution backward data", op.geometry, op.d_input, op.d_output, op.weight);
  require_scratch("convolution backward data", op.scratch,
                  convolve_bytes(sides, backward_direction(op.geometry), op.precision));
  convolve(sides, backward_direction(op.geometry), op.d_input, op.d_output, op.weight, {}, Activation::none,
           op.precision, op.mask, op.scratch);
}

void run_cpu(const ConvBackwardWeightOp& op) {
  const ConvSides sides = conv_sides(op.geometry, op.input, op.d_output);
  require_no_padding("convolution backward weight", op.geometry, op.input, op.d_output, op.d_weight);
  require_scratch("convolution backward weight", op.scratch,
                  weight_gradient_bytes(sides, op.d_output, op.precision));
  const int64_t batch = op.input[0], input_size = op.input.size() / batch,
                output_size = op.d_output.size() / batch, pixels = op.d_output[1] * op.d_output[2];
  ScratchCutter cutter(op.scratch);
  const RoundedOperand larges = rounded_shards(sides.large, op.precision, cutter),
                       smalls = rounded_shards(sides.small, op.precision, cutter);
  const WeightPass weight(sides, shard_count(batch), cutter);
  const BiasPass bias(batch * pixels, op.d_output[3], cutter);
  weight.prepare();
  for_each_shard(batch, [&](int64_t shard, int64_t first, int64_t images, int worker) {
    const float* input = op.input.data + first * input_size;
    const float* d_output = op.d_output.data + first * output_size;
    const bool normal = op.geometry.kind == ConvKind::normal;
    weight.run(shard, larges.of(normal ? input : d_output, images * sides.large.size(), worker),
               smalls.of(normal ? d_output : input, images * sides.small.size(), worker), images, worker);
    if (op.d_bias) bias.run(op.d_output.data, first * pixels, (first + images) * pixels, worker);
  });
  weight.finish(op.d_weight.data, shard_count(batch));
  if (op.d_bias) bias.finish(op.d_bias.data);
}

}  // namespace vqlab
