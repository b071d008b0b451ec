// A convolution as matrix products over patches: which pixel of the source each term of each output pixel
// reads. Private to conv2d.cpp.
//
// Seen from its large side, a normal convolution gathers: small pixel y reads large pixels stride y - padding
// + ky. Backwards, large pixel y reads the small pixels (y + padding - ky) / stride where that is whole:
// which ky these are depends on y modulo stride, so that direction is stride^2 products, one per phase of the
// large pixels, each with its own part of the weight.
#pragma once

#include "conv2d.hpp"
#include "indexed_product.hpp"

namespace vqlab {

struct ImageSize {
  int64_t h, w, c;

  int64_t pixels() const { return h * w; }
  int64_t size() const { return h * w * c; }
};

// The normal convolution behind an op, from its large to its small side; a transposed one is it run
// backwards.
struct ConvSides {
  ImageSize large, small;
  int64_t kernel, stride, padding;

  int64_t patch_size() const {
    return kernel * kernel * large.c;
  }  // what a small pixel reads of the large side
};

// The images that a product reads, with `before` zero rows above and columns to the left; h and w are the
// padded ones.
struct PaddedSize {
  int64_t before, h, w, c;

  int64_t size() const { return h * w * c; }
};

// One direction of a grid of output pixels.
struct GridAxis {
  int64_t count;                      // output pixels
  int64_t output, output_step;        // place of the first, distance
  int64_t source, source_step;        // in the padded source: place that tap 0 of the first reads, distance
  int64_t taps;                       // terms per channel
  int64_t kernel_first, kernel_step;  // the kernel's coordinate of tap 0, distance
};

struct PatchGrid {
  GridAxis y, x;

  int64_t pixels() const { return y.count * x.count; }
  int64_t taps() const { return y.taps * x.taps; }
};

enum class Direction { to_small, to_large };

PaddedSize padded_source(const ConvSides& sides, Direction direction);

// to_small: the one grid, phase 0; to_large: of phase (y, x) in [0, stride)^2.
PatchGrid patch_grid(const ConvSides& sides, Direction direction, int64_t phase_y, int64_t phase_x);

// The offsets of the grid for `images` images one after the other: row_offset and output_offset (images *
// pixels), term_offset (taps * channels of the source).
void fill_offsets(const PatchGrid& grid, const PaddedSize& source, const ImageSize& output, int64_t images,
                  int32_t* row_offset, int32_t* output_offset, int32_t* term_offset);

// weight (small_c, kernel, kernel, large_c) -> the panels of the grid: terms in the order of term_offset, a
// column per output channel.
void pack_weight(const PatchGrid& grid, const ConvSides& sides, Direction direction, const float* weight,
                 float* packed);

// The panels of a weight gradient, terms (kernel, kernel, large_c) and a column per small_c, -> weight.
void unpack_gradient(const ConvSides& sides, const float* packed, float* weight);

// images (count, h, w, c) -> the same with zero borders.
void pad_images(float* padded, const PaddedSize& to, const float* images, const ImageSize& from,
                int64_t count);

}  // namespace vqlab
