#include "conv_pass.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kSumGrain = 4096;  // elements

ConvSides patch_sides(const ConvSides& s) {
  return {.large = {s.small.h, s.small.w, s.patch_size()},
          .small = s.small,
          .kernel = 1,
          .stride = 1,
          .padding = 0};
}

// Adds to the first of `count` arrays the others, in their order.
VQ_MULTIVERSION void add_arrays(float* sum, int64_t stride, int64_t count, int64_t begin, int64_t end) {
  for (int64_t array = 1; array < count; ++array) {
    const float* other = sum + array * stride;
    for (int64_t i = begin; i < end; ++i) sum[i] += other[i];
  }
}

// sums (columns) of data (size / columns, columns), which is one slice; lane_sums (lanes, columns)
VQ_MULTIVERSION void sum_slice(float* sums, float* lane_sums, int64_t lanes, const float* data, int64_t size,
                               int64_t columns) {
  const int64_t width = lanes * columns;
  std::fill_n(lane_sums, width, 0.0f);
  for (int64_t begin = 0; begin < size; begin += width) {
    const int64_t count = std::min(width, size - begin);
    for (int64_t i = 0; i < count; ++i) lane_sums[i] += data[begin + i];
  }
  for (int64_t half = width / 2; half >= columns; half /= 2)
    for (int64_t i = 0; i < half; ++i) lane_sums[i] += lane_sums[i + half];
  std::copy_n(lane_sums, columns, sums);
}

// (rows, from) -> (rows, to), zeros in the new columns.
void pad_columns(float* padded, int64_t to, const float* matrix, int64_t from, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    padded = std::copy_n(matrix + row * from, from, padded);
    padded = std::fill_n(padded, to - from, 0.0f);
  }
}

// Calls visit(grid, its first row) for the parts of a phase that read the same taps.
template <class Visit>
void visit_parts(const PatchGrid& phase, const ImageSize& source, int64_t& first_row, const Visit& visit) {
  for_each_part(phase.y, source.h, [&](const GridAxis& y) {
    for_each_part(phase.x, source.w, [&](const GridAxis& x) {
      const PatchGrid grid{y, x};
      visit(grid, first_row);
      first_row += kConvShard * grid.pixels();
    });
  });
}

}  // namespace

SidePass::SidePass(const ConvSides& sides, Direction direction, ScratchCutter& scratch)
    : sides_(sides),
      direction_(direction),
      from_(direction == Direction::to_small ? sides.large : sides.small),
      to_(direction == Direction::to_small ? sides.small : sides.large),
      weight_(scratch.take<float>(panel_floats() * terms())),
      bias_(scratch.take<float>(panel_floats())),
      offsets_(scratch, kConvShard * to_.pixels(), terms()) {}

// Calls visit(phase, its first term): together the phases have every output pixel and every term once.
template <class Visit>
void SidePass::for_each_phase(const Visit& visit) const {
  const int64_t phases = direction_ == Direction::to_small ? 1 : sides_.stride;
  int64_t first_term = 0;
  for (int64_t y = 0; y < phases; ++y)
    for (int64_t x = 0; x < phases; ++x) {
      const PatchGrid phase = phase_grid(sides_, direction_, y, x);
      visit(phase, first_term);
      first_term += phase.taps() * from_.c;
    }
}

// Calls visit(grid, its first row, its phase's first term) for the parts of the phases.
template <class Visit>
void SidePass::for_each_grid(const Visit& visit) const {
  int64_t first_row = 0;
  for_each_phase([&](const PatchGrid& phase, int64_t first_term) {
    visit_parts(phase, from_, first_row,
                [&](const PatchGrid& grid, int64_t row) { visit(grid, row, first_term); });
  });
}

void SidePass::prepare(const float* weight, const View<const float>& bias) const {
  for_each_phase([&](const PatchGrid& phase, int64_t first_term) {
    fill_term_offsets(phase, from_, offsets_.term + first_term);
    pack_weight(phase, sides_, direction_, weight, weight_ + first_term * panel_floats());
  });
  for_each_grid([&](const PatchGrid& grid, int64_t first_row, int64_t) {
    fill_pixel_offsets(grid, from_, to_, to_.c, kConvShard, offsets_.row + first_row,
                       offsets_.output + first_row);
  });
  std::fill_n(bias_, panel_floats(), 0.0f);
  if (bias) std::copy_n(bias.data, to_.c, bias_);
}

void SidePass::run(float* output, const float* input, int64_t images, bool relu, int) const {
  for_each_grid([&](const PatchGrid& grid, int64_t first_row, int64_t first_term) {
    multiply(PatchProduct{.output = output,
                          .output_offset = offsets_.output + first_row,
                          .patches = {.source = input,
                                      .row_offset = offsets_.row + first_row,
                                      .term_offset = offsets_.term + first_term,
                                      .rows = images * grid.pixels(),
                                      .terms = grid.taps() * from_.c,
                                      .runs = grid.runs(from_.c)},
                          .weight = weight_ + first_term * panel_floats(),
                          .bias = bias_,
                          .columns = to_.c,
                          .relu = relu});
  });
}

ScatterPass::ScatterPass(const ConvSides& sides, ScratchCutter& scratch)
    : sides_(sides),
      canvas_size_{sides.large.h + 2 * sides.padding, sides.large.w + 2 * sides.padding, sides.large.c},
      to_patches_(patch_sides(sides), Direction::to_large, scratch),
      bias_(scratch.take<float>(sides.large.w * sides.large.c)),
      patches_(scratch, worker_count(), kConvShard * to_patches_.to().size()),
      canvases_(scratch, worker_count(), canvas_size_.size()) {}

void ScatterPass::prepare(const float* weight, const View<const float>& bias) const {
  to_patches_.prepare(weight, {});
  for (int64_t i = 0; i < sides_.large.w * sides_.large.c; ++i)
    bias_[i] = bias ? bias.data[i % sides_.large.c] : 0.0f;
}

void ScatterPass::run(float* output, const float* input, int64_t images, bool relu, int worker) const {
  to_patches_.run(patches_[worker], input, images, false, worker);
  for (int64_t image = 0; image < images; ++image) {
    paint(canvases_[worker], patches_[worker] + image * to_patches_.to().size());
    crop(output + image * sides_.large.size(), canvases_[worker], relu);
  }
}

void ScatterPass::paint(float* canvas, const float* patches) const {
  const int64_t C = canvas_size_.c, row_size = canvas_size_.w * C, patch_row = sides_.kernel * C;
  std::fill_n(canvas, canvas_size_.size(), 0.0f);
  for (int64_t y = 0; y < sides_.small.h; ++y)
    for (int64_t x = 0; x < sides_.small.w; ++x)
      for (int64_t ky = 0; ky < sides_.kernel; ++ky, patches += patch_row) {
        float* to = canvas + (y * sides_.stride + ky) * row_size + x * sides_.stride * C;
        for (int64_t i = 0; i < patch_row; ++i) to[i] += patches[i];
      }
}

void ScatterPass::crop(float* output, const float* canvas, bool relu) const {
  const int64_t C = canvas_size_.c, row_size = sides_.large.w * C;
  for (int64_t y = 0; y < sides_.large.h; ++y, output += row_size) {
    const float* from = canvas + ((y + sides_.padding) * canvas_size_.w + sides_.padding) * C;
    for (int64_t i = 0; i < row_size; ++i) {
      const float x = from[i] + bias_[i];
      output[i] = relu && x <= 0.0f ? 0.0f : x;
    }
  }
}

WeightPass::WeightPass(const ConvSides& sides, int64_t shards, ScratchCutter& scratch)
    : sides_(sides),
      offsets_(scratch, kConvShard * sides.small.pixels(), sides.patch_size()),
      gradients_(scratch, shards, columns() * sides.patch_size()),
      padded_rights_(scratch, worker_count(),
                     sides.small.c == columns() ? 0 : kConvShard * sides.small.pixels() * columns()) {}

template <class Visit>
void WeightPass::for_each_grid(const Visit& visit) const {
  int64_t first_row = 0;
  visit_parts(phase_grid(sides_, Direction::to_small, 0, 0), sides_.large, first_row, visit);
}

void WeightPass::prepare() const {
  fill_term_offsets(phase_grid(sides_, Direction::to_small, 0, 0), sides_.large, offsets_.term);
  for_each_grid([&](const PatchGrid& grid, int64_t first_row) {
    fill_pixel_offsets(grid, sides_.large, sides_.small, columns(), kConvShard, offsets_.row + first_row,
                       offsets_.output + first_row);
  });
}

void WeightPass::run(int64_t shard, const float* large, const float* small, int64_t images,
                     int worker) const {
  if (columns() != sides_.small.c) {
    pad_columns(padded_rights_[worker], columns(), small, sides_.small.c, images * sides_.small.pixels());
    small = padded_rights_[worker];
  }
  std::fill_n(gradients_[shard], gradients_.size, 0.0f);
  for_each_grid([&](const PatchGrid& grid, int64_t first_row) {
    multiply(PatchGradient{.gradient = gradients_[shard],
                           .patches = {.source = large,
                                       .row_offset = offsets_.row + first_row,
                                       .term_offset = offsets_.term,
                                       .rows = images * grid.pixels(),
                                       .terms = sides_.patch_size(),
                                       .runs = grid.runs(sides_.large.c)},
                           .right = small,
                           .right_offset = offsets_.output + first_row,
                           .columns = columns()});
  });
}

void WeightPass::finish(float* d_weight, int64_t shards) const {
  parallel_ranges(gradients_.size, kSumGrain, [&](int64_t begin, int64_t end) {
    add_arrays(gradients_[0], gradients_.size, shards, begin, end);
  });
  unpack_gradient(sides_, gradients_[0], d_weight);
}

BiasPass::BiasPass(int64_t pixels, int64_t channels, ScratchCutter& scratch)
    : pixels_(pixels),
      channels_(channels),
      slices_(column_slices(pixels, channels)),
      slice_sums_(scratch, slices_.count, channels),
      lane_sums_(scratch, worker_count(), column_lanes(channels) * channels) {}

void BiasPass::run(const float* d_output, int64_t begin, int64_t end, int worker) const {
  for (int64_t i = (begin + slices_.rows - 1) / slices_.rows; i * slices_.rows < end; ++i) {
    const int64_t first = i * slices_.rows, rows = std::min(slices_.rows, pixels_ - first);
    sum_slice(slice_sums_[i], lane_sums_[worker], column_lanes(channels_), d_output + first * channels_,
              rows * channels_, channels_);
  }
}

void BiasPass::finish(float* d_bias) const {
  const int64_t filled = (pixels_ + slices_.rows - 1) / slices_.rows;
  std::fill(slice_sums_[filled], slice_sums_[slices_.count], 0.0f);
  sum_slice(d_bias, lane_sums_[0], column_lanes(channels_), slice_sums_[0], slices_.count * channels_,
            channels_);
}

}  // namespace vqlab
