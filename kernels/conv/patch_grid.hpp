// A convolution as matrix products over patches: which pixel of the source each term of each output pixel
// reads. Private to conv2d.cpp.
//
// Seen from its large side, a normal convolution gathers: small pixel y reads large pixels stride y - padding
// + ky. Backwards, large pixel y reads the small pixels (y + padding - ky) / stride where that is whole:
// which ky these are depends on y modulo stride, so that direction is stride^2 products, one per phase of the
// large pixels, each with its own part of the weight.
#pragma once

#include <algorithm>

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

enum class Direction { to_small, to_large };

// Output pixels of one axis that read the same taps of the kernel. Taps that would read outside the source
// are left out: nothing is padded and no zero is multiplied.
struct GridAxis {
  int64_t count;                // output pixels
  int64_t output, output_step;  // place of the first, distance
  int64_t source, source_step;  // place that tap 0 of the first reads (outside, if it is left out), distance
  int64_t taps;                 // of the phase
  int64_t tap_begin, tap_end;   // those that are read
  int64_t kernel_first, kernel_step;  // the kernel's coordinate of tap 0, distance
};

// All output pixels of a phase, or the part of them that reads the same taps.
struct PatchGrid {
  GridAxis y, x;

  int64_t pixels() const { return y.count * x.count; }
  int64_t taps() const { return y.taps * x.taps; }
  // The terms that are read, of those of the phase in the order of its taps; `channels` of the source.
  TermRuns runs(int64_t channels) const;
};

// to_small: the one phase 0; to_large: phase (y, x) in [0, stride)^2.
PatchGrid phase_grid(const ConvSides& sides, Direction direction, int64_t phase_y, int64_t phase_x);

// Calls visit(part) for the parts of a phase's axis that read the same taps of a source of this side.
template <class Visit>
void for_each_part(const GridAxis& axis, int64_t source_side, const Visit& visit) {
  const auto first_tap = [&](int64_t i) {
    return std::clamp<int64_t>(-(axis.source + i * axis.source_step), 0, axis.taps);
  };
  const auto last_tap = [&](int64_t i) {
    return std::clamp<int64_t>(source_side - (axis.source + i * axis.source_step), 0, axis.taps);
  };
  for (int64_t begin = 0, end; begin < axis.count; begin = end) {
    for (end = begin + 1;
         end < axis.count && first_tap(end) == first_tap(begin) && last_tap(end) == last_tap(begin);)
      ++end;
    GridAxis part = axis;
    part.count = end - begin;
    part.output += begin * axis.output_step;
    part.source += begin * axis.source_step;
    part.tap_begin = first_tap(begin);
    part.tap_end = std::max(part.tap_begin, last_tap(begin));
    visit(part);
  }
}

// The offsets of the grid's pixels for `images` images one after the other, (images * pixels): where tap 0
// reads, and where the output lies if its pixels are `output_step` floats apart.
void fill_pixel_offsets(const PatchGrid& grid, const ImageSize& source, const ImageSize& output,
                        int64_t output_step, int64_t images, int32_t* row_offset, int32_t* output_offset);

// The offsets of a phase's terms, (taps * channels of the source).
void fill_term_offsets(const PatchGrid& phase, const ImageSize& source, int32_t* term_offset);

// weight (small_c, kernel, kernel, large_c) -> the panels of a phase: terms in the order of term_offset, a
// column per output channel.
void pack_weight(const PatchGrid& phase, const ConvSides& sides, Direction direction, const float* weight,
                 float* packed);

// The panels of a weight gradient, terms (kernel, kernel, large_c) and a column per small_c, -> weight.
void unpack_gradient(const ConvSides& sides, const float* packed, float* weight);

}  // namespace vqlab
