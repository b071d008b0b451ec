// Which pixel of an image each pixel of the net's input shows, on every device; see image_input.hpp.
#pragma once

#include "../core/random.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

struct ImagePlacement {
  bool flipped = false;
  int shift_y = 0, shift_x = 0;
};

// Uniform in [-shift, shift].
VQ_HOST_DEVICE inline int draw_shift(uint32_t bits, int64_t shift) {
  return int(int64_t(uint64_t(bits) * uint64_t(2 * shift + 1) >> 32) - shift);
}

// Of the `image`-th of the batch; state (1) may be absent without flip and shift.
VQ_HOST_DEVICE inline ImagePlacement place_image(const StepState* state, int64_t image, bool flip,
                                                 int64_t shift, uint64_t seed) {
  if (!flip && shift == 0) return {};
  const RandomKey key{.seed = seed, .step = uint32_t(state->epoch), .use = RandomUse::augment, .tensor = 0};
  const auto bits = random_bits(key, uint64_t(state->first_index + image));
  return {.flipped = flip && bits.v[0] >> 31 != 0,
          .shift_y = draw_shift(bits.v[1], shift),
          .shift_x = draw_shift(bits.v[2], shift)};
}

// Source of an output coordinate on a side of the image: padding and shift repeat its edge pixels.
template <class Int>
VQ_HOST_DEVICE inline Int source_pixel(Int output, Int side, bool flipped, int shift) {
  const Int placed = output < side ? output : side - 1;
  const Int source = (flipped ? side - 1 - placed : placed) + shift;
  return source < 0 ? 0 : source < side ? source : side - 1;
}

VQ_HOST_DEVICE inline float normalise(uint8_t byte) { return float(byte) / 255.0f - 0.5f; }

VQ_HOST_DEVICE inline float mix_pixels(float own, float other, float mix) {
  return mix * own + (1.0f - mix) * other;
}

}  // namespace vqlab
