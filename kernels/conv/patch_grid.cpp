#include "patch_grid.hpp"

#include <algorithm>

namespace vqlab {
namespace {

// The backward direction on one axis. Large pixel y = phase + stride * q reads small pixel m - t with the
// kernel's row c + stride * t, where y + padding = stride * m + c.
struct BackwardPhase {
  int64_t m, c, taps;

  BackwardPhase(const ConvSides& sides, int64_t phase)
      : m((phase + sides.padding) / sides.stride),
        c((phase + sides.padding) % sides.stride),
        taps((sides.kernel - c + sides.stride - 1) / sides.stride) {}
};

// Zero rows that the first tap of the first pixel of any phase needs.
int64_t rows_before(const ConvSides& sides, Direction direction) {
  if (direction == Direction::to_small) return sides.padding;
  int64_t before = 0;
  for (int64_t phase = 0; phase < sides.stride; ++phase) {
    const BackwardPhase p(sides, phase);
    before = std::max(before, p.taps - 1 - p.m);
  }
  return before;
}

// Rows that the last output pixel reads up to, `before` included.
int64_t padded_side(const ConvSides& sides, Direction direction, int64_t before, int64_t large,
                    int64_t small) {
  if (direction == Direction::to_small)
    return std::max(before + large, sides.stride * (small - 1) + sides.kernel);
  return before + std::max(small, (large - 1 + sides.padding) / sides.stride + 1);
}

GridAxis grid_axis(const ConvSides& sides, Direction direction, int64_t phase, int64_t large, int64_t small) {
  const int64_t stride = sides.stride;
  if (direction == Direction::to_small)
    return {.count = small,
            .output = 0,
            .output_step = 1,
            .source = 0,
            .source_step = stride,
            .taps = sides.kernel,
            .kernel_first = 0,
            .kernel_step = 1};
  const BackwardPhase p(sides, phase);
  return {.count = phase < large ? (large - phase + stride - 1) / stride : 0,
          .output = phase,
          .output_step = stride,
          .source = p.m - (p.taps - 1) + rows_before(sides, direction),
          .source_step = 1,
          .taps = p.taps,
          .kernel_first = p.c + stride * (p.taps - 1),
          .kernel_step = -stride};
}

}  // namespace

PaddedSize padded_source(const ConvSides& sides, Direction direction) {
  const int64_t before = rows_before(sides, direction);
  return {.before = before,
          .h = padded_side(sides, direction, before, sides.large.h, sides.small.h),
          .w = padded_side(sides, direction, before, sides.large.w, sides.small.w),
          .c = direction == Direction::to_small ? sides.large.c : sides.small.c};
}

PatchGrid patch_grid(const ConvSides& sides, Direction direction, int64_t phase_y, int64_t phase_x) {
  return {.y = grid_axis(sides, direction, phase_y, sides.large.h, sides.small.h),
          .x = grid_axis(sides, direction, phase_x, sides.large.w, sides.small.w)};
}

void fill_offsets(const PatchGrid& grid, const PaddedSize& source, const ImageSize& output, int64_t images,
                  int32_t* row_offset, int32_t* output_offset, int32_t* term_offset) {
  for (int64_t image = 0; image < images; ++image)
    for (int64_t y = 0; y < grid.y.count; ++y) {
      const int64_t source_row = image * source.h + grid.y.source + y * grid.y.source_step;
      const int64_t output_row = image * output.h + grid.y.output + y * grid.y.output_step;
      for (int64_t x = 0; x < grid.x.count; ++x) {
        *row_offset++ = int32_t((source_row * source.w + grid.x.source + x * grid.x.source_step) * source.c);
        *output_offset++ =
            int32_t((output_row * output.w + grid.x.output + x * grid.x.output_step) * output.c);
      }
    }
  for (int64_t y = 0; y < grid.y.taps; ++y)
    for (int64_t x = 0; x < grid.x.taps; ++x)
      for (int64_t c = 0; c < source.c; ++c) *term_offset++ = int32_t((y * source.w + x) * source.c + c);
}

void pack_weight(const PatchGrid& grid, const ConvSides& sides, Direction direction, const float* weight,
                 float* packed) {
  const bool to_small = direction == Direction::to_small;
  const int64_t k = sides.kernel, large_c = sides.large.c, small_c = sides.small.c;
  const int64_t columns = to_small ? small_c : large_c, source_c = to_small ? large_c : small_c;
  for (int64_t first = 0; first < columns; first += kPanel)
    for (int64_t y = 0; y < grid.y.taps; ++y)
      for (int64_t x = 0; x < grid.x.taps; ++x) {
        const int64_t ky = grid.y.kernel_first + y * grid.y.kernel_step,
                      kx = grid.x.kernel_first + x * grid.x.kernel_step;
        const float* tap = weight + (ky * k + kx) * large_c;
        const int64_t from_step = to_small ? 1 : k * k * large_c,
                      column_step = to_small ? k * k * large_c : 1;
        for (int64_t c = 0; c < source_c; ++c)
          for (int64_t n = first; n < first + kPanel; ++n)
            *packed++ = n < columns ? tap[c * from_step + n * column_step] : 0.0f;
      }
}

void unpack_gradient(const ConvSides& sides, const float* packed, float* weight) {
  const int64_t terms = sides.patch_size();
  for (int64_t n = 0; n < sides.small.c; ++n)
    for (int64_t k = 0; k < terms; ++k)
      weight[n * terms + k] = packed[(n / kPanel * terms + k) * kPanel + n % kPanel];
}

void pad_images(float* padded, const PaddedSize& to, const float* images, const ImageSize& from,
                int64_t count) {
  for (int64_t image = 0; image < count; ++image)
    for (int64_t y = 0; y < to.h; ++y) {
      float* const row_end = padded + to.w * to.c;
      const int64_t from_y = y - to.before;
      if (from_y >= 0 && from_y < from.h) {
        padded = std::fill_n(padded, to.before * to.c, 0.0f);
        padded = std::copy_n(images + (image * from.h + from_y) * from.w * from.c, from.w * from.c, padded);
      }
      padded = std::fill_n(padded, row_end - padded, 0.0f);
    }
}

}  // namespace vqlab
