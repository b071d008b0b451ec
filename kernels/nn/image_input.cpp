#include "image_input.hpp"

#include "../core/parallel.hpp"
#include "image_placement.hpp"

namespace vqlab {
namespace {

// The bytes of the image-th of the batch.
const uint8_t* bytes_of(const ImageInputOp& op, int64_t image) {
  const int64_t place = op.places ? op.places.data[image] : image;
  return op.images.data + place * op.images[1] * op.images[2] * op.images[3];
}

VQ_MULTIVERSION void normalise_row(float* output, const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) output[i] = normalise(bytes[i]);
}

void convert_image(const ImageInputOp& op, int64_t image) {
  const int64_t H = op.images[1], W = op.images[2], C = op.images[3], OH = op.output[1], OW = op.output[2];
  const ImagePlacement place = place_image(op.state.data, image, op.flip, op.shift, op.seed);
  const uint8_t* bytes = bytes_of(op, image);
  const bool straight = !place.flipped && place.shift_x == 0;
  for (int64_t y = 0; y < OH; ++y) {
    const uint8_t* from = bytes + source_pixel(y, H, false, place.shift_y) * W * C;
    float* to = op.output.data + (image * OH + y) * OW * C;
    if (straight) normalise_row(to, from, W * C);
    for (int64_t x = straight ? W : 0; x < OW; ++x)
      for (int64_t c = 0; c < C; ++c)
        to[x * C + c] = normalise(from[source_pixel(x, W, place.flipped, place.shift_x) * C + c]);
  }
}

// What convert_image wrote, mixed with the mirrored image.
void mix_image(const ImageInputOp& op, int64_t image, float mix) {
  const int64_t H = op.images[1], W = op.images[2], C = op.images[3], OH = op.output[1], OW = op.output[2];
  const int64_t other = op.output[0] - 1 - image;
  const ImagePlacement place = place_image(op.state.data, other, op.flip, op.shift, op.seed);
  const uint8_t* bytes = bytes_of(op, other);
  for (int64_t y = 0; y < OH; ++y) {
    const uint8_t* from = bytes + source_pixel(y, H, false, place.shift_y) * W * C;
    float* to = op.output.data + (image * OH + y) * OW * C;
    for (int64_t x = 0; x < OW; ++x) {
      const uint8_t* pixel = from + source_pixel(x, W, place.flipped, place.shift_x) * C;
      for (int64_t c = 0; c < C; ++c) to[x * C + c] = mix_pixels(to[x * C + c], normalise(pixel[c]), mix);
    }
  }
}

}  // namespace

void ImageInputOp::check() const {
  VQ_REQUIRE(images.rank == 4 && output.rank == 4 && output[0] == (places ? places.size() : images[0]) &&
                 output[3] >= images[3] && output[1] >= images[1] && output[2] >= images[2],
             "image input: output {} cannot hold images {} at places {}", output.shape(), images.shape(),
             places.shape());
  VQ_REQUIRE(shift >= 0 && (shift == 0 || shift < std::min(images[1], images[2])),
             "image input: shift {} is out of range for images {}", shift, images.shape());
  VQ_REQUIRE((!flip && shift == 0 && !mixup) || state.size() == 1,
             "image input: augmentation needs the state of the step");
}

void run_cpu(const ImageInputOp& op) {
  VQ_REQUIRE(op.output[3] == op.images[3], "image input: output {} pads the channels of images {}",
             op.output.shape(), op.images.shape());
  const float mix = op.mixup ? op.state.data[0].mix : 1.0f;
  parallel_for(op.output[0], [&](int64_t image, int) {
    convert_image(op, image);
    if (mix != 1.0f) mix_image(op, image, mix);
  });
}

}  // namespace vqlab
