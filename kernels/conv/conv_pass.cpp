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

// sums[i] = data[i] + data[i + width] + ...
VQ_MULTIVERSION void sum_rows(float* sums, int64_t width, const float* data, int64_t size) {
  std::fill_n(sums, width, 0.0f);
  for (int64_t begin = 0; begin < size; begin += width) {
    const int64_t count = std::min(width, size - begin);
    for (int64_t i = 0; i < count; ++i) sums[i] += data[begin + i];
  }
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
      bias_(scratch.take<float>(sides.large.c)),
      patches_(scratch, worker_count(), kConvShard * to_patches_.to().size()),
      canvases_(scratch, worker_count(), canvas_size_.size()) {}

void ScatterPass::prepare(const float* weight, const View<const float>& bias) const {
  to_patches_.prepare(weight, {});
  for (int64_t c = 0; c < sides_.large.c; ++c) bias_[c] = bias ? bias.data[c] : 0.0f;
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
  for (int64_t i = 0; i < canvas_size_.pixels(); ++i)
    for (int64_t c = 0; c < C; ++c) canvas[i * C + c] = bias_[c];
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
    for (int64_t i = 0; i < row_size; ++i) output[i] = relu && from[i] <= 0.0f ? 0.0f : from[i];
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

BiasPass::BiasPass(int64_t channels, int64_t shards, ScratchCutter& scratch)
    : channels_(channels), sums_(scratch, shards, channels * std::max(int64_t(1), 64 / channels)) {}

void BiasPass::run(int64_t shard, const float* d_output, int64_t size) const {
  sum_rows(sums_[shard], sums_.size, d_output, size);
}

void BiasPass::finish(float* d_bias, int64_t shards) const {
  add_arrays(sums_[0], sums_.size, shards, 0, sums_.size);
  std::fill_n(d_bias, channels_, 0.0f);
  for (int64_t i = 0; i < sums_.size; ++i) d_bias[i % channels_] += sums_[0][i];
}

}  // namespace vqlab
