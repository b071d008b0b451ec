// From picture bytes to the input of the net.
#pragma once

#include "../core/op.hpp"
#include "../core/random.hpp"
#include "../core/step_state.hpp"

namespace vqlab {

// output = bytes / 255 - 0.5, in [-0.5, 0.5], NHWC. Where the output is larger than the image, the last row
// and column are repeated (the loss masks that part and the decoder's output is cropped). Augmentation draws
// per image, keyed by its place in the epoch: a horizontal flip with probability 1/2, a shift by up to
// `shift` pixels with repeated edges. Of the image's 128 random bits word 0 decides the flip (its highest
// bit), and floor(word / 2^32 * (2 shift + 1)) - shift is how far down (word 1) and right (word 2) a pixel of
// the flipped image is read. With mixup (Zhang et al. 2018) and m = state.mix below 1 a pixel is
// m * own + (1 - m) * that of image B - 1 - b at the same place of the output, each placed by its own draws.
struct ImageInputOp {
  View<float> output;          // (B, OH, OW, C'), OH >= H, OW >= W; on the GPU C' >= C, what is beyond is 0
  View<const uint8_t> images;  // (B, H, W, C), or with places a set (n, H, W, C)
  View<const int32_t> places;  // (B), each in [0, n): image b is images[places[b]]; or absent
  bool flip = false;
  int64_t shift = 0;  // pixels, 0 to min(H, W) - 1
  bool mixup = false;
  uint64_t seed = 0;
  View<const StepState> state;  // (1), epoch and first_index key the draws; absent without flip, shift, mixup

  // Throws Error(failed) on shapes that disagree or a shift out of range.
  void check() const;
};

void run_cpu(const ImageInputOp& op);
void run_cuda(const ImageInputOp& op, Stream stream);

}  // namespace vqlab
