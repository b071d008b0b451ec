// output = bytes / 255 - 0.5 with padding, flips, shifts and mixup as image_input.hpp says; extra channels
// are 0. Mapping: blocks (x, y): the threads of row y step over the pixels of every (grid height)-th image;
// each draws the augmentation of its image, and of the one it is mixed with, itself. A thread writes all
// channels of its pixel, four at a time if there are a multiple of four. Traffic: 4 bytes per output element,
// 1 per pixel and image channel (2 with mixup) and 4 per image with places. Shared memory: none. Needs: an
// output image of less than 2^30 elements. Measured on an H200, (128, 28, 28, 1) without places: 5.4 us.
#include "image_input.hpp"

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"
#include "image_placement.hpp"

namespace vqlab {
namespace {

constexpr unsigned kBlock = 256;
constexpr unsigned kPixelsPerThread = 4;  // shares the cost of a draw
constexpr int64_t kMaxGridHeight = 65535;

struct Sides {
  int H, W, C, OH, OW, OC;  // of an image and of an output image
};

// The bytes of the pixel that output place (y, x) shows.
__device__ const uint8_t* source_bytes(const uint8_t* images, int64_t image, int y, int x,
                                       const ImagePlacement& place, const Sides& sides) {
  const int64_t row = image * sides.H + source_pixel(y, sides.H, false, place.shift_y);
  return images + (row * sides.W + source_pixel(x, sides.W, place.flipped, place.shift_x)) * sides.C;
}

template <int kWidth>
__global__ void image_input_kernel(float* output,           // (B, OH, OW, OC)
                                   const uint8_t* images,   // (B, H, W, C), with places (n, H, W, C)
                                   const int32_t* places,   // (B) or null
                                   const StepState* state,  // (1), or null without flip, shift and mixup
                                   int64_t B, Sides sides, bool flip, int64_t shift, bool mixup,
                                   uint64_t seed) {
  const int C = sides.C, OH = sides.OH, OW = sides.OW, OC = sides.OC;
  const float mix = mixup ? state->mix : 1.0f;
  for (int64_t image = blockIdx.y; image < B; image += gridDim.y) {
    const int64_t other = B - 1 - image;
    const int64_t own_image = places != nullptr ? places[image] : image,
                  other_image = places != nullptr ? places[other] : other;
    const ImagePlacement place = place_image(state, image, flip, shift, seed);
    const ImagePlacement other_place =
        mix != 1.0f ? place_image(state, other, flip, shift, seed) : ImagePlacement{};
    float* to = output + image * OH * OW * OC;
    for (int pixel = int(blockIdx.x * kBlock + threadIdx.x); pixel < OH * OW;
         pixel += int(gridDim.x * kBlock)) {
      const int y = pixel / OW, x = pixel - y * OW;
      const uint8_t* from = source_bytes(images, own_image, y, x, place, sides);
      const uint8_t* mixed = source_bytes(images, other_image, y, x, other_place, sides);
      for (int c = 0; c < OC; c += kWidth) {
        Floats<kWidth> values;
        for (int w = 0; w < kWidth; ++w) values.at[w] = c + w < C ? normalise(from[c + w]) : 0.0f;
        if (mix != 1.0f)
          for (int w = 0; w < kWidth; ++w)
            if (c + w < C) values.at[w] = mix_pixels(values.at[w], normalise(mixed[c + w]), mix);
        store_floats<kWidth>(to + int64_t(pixel) * OC + c, values);
      }
    }
  }
}

}  // namespace

void run_cuda(const ImageInputOp& op, Stream stream) {
  const int64_t B = op.output[0], pixels = op.output[1] * op.output[2];
  if (op.output.size() == 0) return;
  size_in_32_bits("image input", pixels * op.output[3]);
  const Sides sides{int(op.images[1]), int(op.images[2]), int(op.images[3]),
                    int(op.output[1]), int(op.output[2]), int(op.output[3])};
  const bool wide = sides.OC % 4 == 0 && aligned_to_16_bytes(op.output.data);
  const dim3 grid(elementwise_grid(pixels, kBlock * kPixelsPerThread), unsigned(std::min(kMaxGridHeight, B)));
  launch("image_input", wide ? image_input_kernel<4> : image_input_kernel<1>, {grid, kBlock}, stream,
         op.output.data, op.images.data, op.places.data, op.state.data, B, sides, op.flip, op.shift, op.mixup,
         op.seed);
}

}  // namespace vqlab
