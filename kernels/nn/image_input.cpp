#include "image_input.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

// Where output pixel (y, x) of one image reads.
struct Placement {
  bool flipped = false;
  int64_t shift_y = 0, shift_x = 0;
};

// Uniform in [-shift, shift].
int64_t draw_shift(uint32_t bits, int64_t shift) {
  return int64_t(uint64_t(bits) * uint64_t(2 * shift + 1) >> 32) - shift;
}

Placement place_image(const ImageInputOp& op, int64_t image) {
  if (!op.flip && op.shift == 0) return {};
  const StepState& state = op.state.data[0];
  const RandomKey key{.seed = op.seed, .step = uint32_t(state.epoch), .use = RandomUse::augment, .tensor = 0};
  const auto bits = random_bits(key, uint64_t(state.first_index + image));
  return {.flipped = op.flip && bits.v[0] >> 31 != 0,
          .shift_y = draw_shift(bits.v[1], op.shift),
          .shift_x = draw_shift(bits.v[2], op.shift)};
}

// Source of an output coordinate: the padding repeats the last pixel of the placed image.
int64_t source(int64_t out, int64_t side, bool flipped, int64_t shift) {
  const int64_t placed = std::min(out, side - 1);
  return std::clamp((flipped ? side - 1 - placed : placed) + shift, int64_t(0), side - 1);
}

float normalise(uint8_t byte) { return float(byte) / 255.0f - 0.5f; }

VQ_MULTIVERSION void normalise_row(float* output, const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) output[i] = normalise(bytes[i]);
}

void convert_image(const ImageInputOp& op, int64_t image) {
  const int64_t H = op.images[1], W = op.images[2], C = op.images[3], OH = op.output[1], OW = op.output[2];
  const Placement place = place_image(op, image);
  const bool straight = !place.flipped && place.shift_x == 0;
  for (int64_t y = 0; y < OH; ++y) {
    const uint8_t* from = op.images.data + (image * H + source(y, H, false, place.shift_y)) * W * C;
    float* to = op.output.data + (image * OH + y) * OW * C;
    if (straight) normalise_row(to, from, W * C);
    for (int64_t x = straight ? W : 0; x < OW; ++x)
      for (int64_t c = 0; c < C; ++c)
        to[x * C + c] = normalise(from[source(x, W, place.flipped, place.shift_x) * C + c]);
  }
}

}  // namespace

void ImageInputOp::check() const {
  VQ_REQUIRE(images.rank == 4 && output.rank == 4 && output[0] == images[0] && output[3] >= images[3] &&
                 output[1] >= images[1] && output[2] >= images[2],
             "image input: output {} cannot hold images {}", output.shape(), images.shape());
  VQ_REQUIRE(shift >= 0 && (shift == 0 || shift < std::min(images[1], images[2])),
             "image input: shift {} is out of range for images {}", shift, images.shape());
  VQ_REQUIRE((!flip && shift == 0) || state.size() == 1,
             "image input: augmentation needs the state of the step");
}

void run_cpu(const ImageInputOp& op) {
  VQ_REQUIRE(op.output[3] == op.images[3], "image input: output {} pads the channels of images {}",
             op.output.shape(), op.images.shape());
  parallel_for(op.images[0], [&](int64_t image, int) { convert_image(op, image); });
}

}  // namespace vqlab
