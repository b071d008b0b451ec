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

GridAxis phase_axis(const ConvSides& sides, Direction direction, int64_t phase, int64_t large,
                    int64_t small) {
  const int64_t stride = sides.stride;
  if (direction == Direction::to_small)
    return {.count = small,
            .output = 0,
            .output_step = 1,
            .source = -sides.padding,
            .source_step = stride,
            .taps = sides.kernel,
            .tap_begin = 0,
            .tap_end = sides.kernel,
            .kernel_first = 0,
            .kernel_step = 1};
  const BackwardPhase p(sides, phase);
  return {.count = phase < large ? (large - phase + stride - 1) / stride : 0,
          .output = phase,
          .output_step = stride,
          .source = p.m - (p.taps - 1),
          .source_step = 1,
          .taps = p.taps,
          .tap_begin = 0,
          .tap_end = p.taps,
          .kernel_first = p.c + stride * (p.taps - 1),
          .kernel_step = -stride};
}

}  // namespace

TermRuns PatchGrid::runs(int64_t channels) const {
  const int64_t rows = y.tap_end - y.tap_begin, row = x.taps * channels,
                length = (x.tap_end - x.tap_begin) * channels;
  const int64_t first = y.tap_begin * row + x.tap_begin * channels;
  if (length == row) return {.first = first, .length = rows * row, .step = 0, .count = 1};
  return {.first = first, .length = length, .step = row, .count = rows};
}

PatchGrid phase_grid(const ConvSides& sides, Direction direction, int64_t phase_y, int64_t phase_x) {
  return {.y = phase_axis(sides, direction, phase_y, sides.large.h, sides.small.h),
          .x = phase_axis(sides, direction, phase_x, sides.large.w, sides.small.w)};
}

void fill_pixel_offsets(const PatchGrid& grid, const ImageSize& source, const ImageSize& output,
                        int64_t output_step, int64_t images, int32_t* row_offset, int32_t* output_offset) {
  for (int64_t image = 0; image < images; ++image)
    for (int64_t y = 0; y < grid.y.count; ++y) {
      const int64_t source_row = image * source.h + grid.y.source + y * grid.y.source_step;
      const int64_t output_row = image * output.h + grid.y.output + y * grid.y.output_step;
      for (int64_t x = 0; x < grid.x.count; ++x) {
        *row_offset++ = int32_t((source_row * source.w + grid.x.source + x * grid.x.source_step) * source.c);
        *output_offset++ =
            int32_t((output_row * output.w + grid.x.output + x * grid.x.output_step) * output_step);
      }
    }
}

void fill_term_offsets(const PatchGrid& phase, const ImageSize& source, int32_t* term_offset) {
  for (int64_t y = 0; y < phase.y.taps; ++y)
    for (int64_t x = 0; x < phase.x.taps; ++x)
      for (int64_t c = 0; c < source.c; ++c) *term_offset++ = int32_t((y * source.w + x) * source.c + c);
}

void pack_weight(const PatchGrid& phase, const ConvSides& sides, Direction direction, const float* weight,
                 float* packed) {
  const bool to_small = direction == Direction::to_small;
  const int64_t k = sides.kernel, large_c = sides.large.c, small_c = sides.small.c;
  const int64_t columns = to_small ? small_c : large_c, source_c = to_small ? large_c : small_c;
  for (int64_t first = 0; first < columns; first += kPanel)
    for (int64_t y = 0; y < phase.y.taps; ++y)
      for (int64_t x = 0; x < phase.x.taps; ++x) {
        const int64_t ky = phase.y.kernel_first + y * phase.y.kernel_step,
                      kx = phase.x.kernel_first + x * phase.x.kernel_step;
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

}  // namespace vqlab
