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

bool needs_padding(const PaddedSize& padded, const ImageSize& image) {
  return padded.h != image.h || padded.w != image.w;
}

}  // namespace

SidePass::SidePass(const ConvSides& sides, Direction direction, ScratchCutter& scratch)
    : sides_(sides),
      direction_(direction),
      from_(direction == Direction::to_small ? sides.large : sides.small),
      to_(direction == Direction::to_small ? sides.small : sides.large),
      source_(padded_source(sides, direction)),
      padded_(needs_padding(source_, from_)),
      weight_(scratch.take<float>(panel_floats() * terms())),
      bias_(scratch.take<float>(panel_floats())),
      offsets_(scratch, kConvShard * to_.pixels(), terms()),
      padded_sources_(scratch, worker_count(), padded_ ? kConvShard * source_.size() : 0) {}

// Calls run(grid, its first row, its first term): together the grids have every output pixel and every term
// once.
template <class Run>
void SidePass::for_each_grid(const Run& run) const {
  const int64_t phases = direction_ == Direction::to_small ? 1 : sides_.stride;
  int64_t first_row = 0, first_term = 0;
  for (int64_t y = 0; y < phases; ++y)
    for (int64_t x = 0; x < phases; ++x) {
      const PatchGrid grid = patch_grid(sides_, direction_, y, x);
      run(grid, first_row, first_term);
      first_row += kConvShard * grid.pixels();
      first_term += grid.taps() * from_.c;
    }
}

void SidePass::prepare(const float* weight, const View<const float>& bias) const {
  for_each_grid([&](const PatchGrid& grid, int64_t first_row, int64_t first_term) {
    fill_offsets(grid, source_, to_, kConvShard, offsets_.row + first_row, offsets_.output + first_row,
                 offsets_.term + first_term);
    pack_weight(grid, sides_, direction_, weight, weight_ + first_term * panel_floats());
  });
  std::fill_n(bias_, panel_floats(), 0.0f);
  if (bias) std::copy_n(bias.data, to_.c, bias_);
}

void SidePass::run(float* output, const float* input, int64_t images, bool relu, int worker) const {
  if (padded_) {
    pad_images(padded_sources_[worker], source_, input, from_, images);
    input = padded_sources_[worker];
  }
  for_each_grid([&](const PatchGrid& grid, int64_t first_row, int64_t first_term) {
    multiply(PatchProduct{.output = output,
                          .output_offset = offsets_.output + first_row,
                          .patches = {.source = input,
                                      .row_offset = offsets_.row + first_row,
                                      .term_offset = offsets_.term + first_term,
                                      .rows = images * grid.pixels(),
                                      .terms = grid.taps() * from_.c},
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
      source_(padded_source(sides, Direction::to_small)),
      padded_(needs_padding(source_, sides.large)),
      offsets_(scratch, kConvShard * sides.small.pixels(), sides.patch_size()),
      gradients_(scratch, shards, panels(sides.small.c) * kPanel * sides.patch_size()),
      padded_sources_(scratch, worker_count(), padded_ ? kConvShard * source_.size() : 0),
      padded_rights_(scratch, worker_count(),
                     sides.small.c % kPanel == 0
                         ? 0
                         : kConvShard * sides.small.pixels() * panels(sides.small.c) * kPanel) {}

void WeightPass::prepare() const {
  fill_offsets(patch_grid(sides_, Direction::to_small, 0, 0), source_, sides_.small, kConvShard, offsets_.row,
               offsets_.output, offsets_.term);
}

void WeightPass::run(int64_t shard, const float* large, const float* small, int64_t images,
                     int worker) const {
  const int64_t rows = images * sides_.small.pixels(), columns = panels(sides_.small.c) * kPanel;
  if (padded_) {
    pad_images(padded_sources_[worker], source_, large, sides_.large, images);
    large = padded_sources_[worker];
  }
  if (columns != sides_.small.c) {
    pad_columns(padded_rights_[worker], columns, small, sides_.small.c, rows);
    small = padded_rights_[worker];
  }
  multiply(PatchGradient{.gradient = gradients_[shard],
                         .patches = {.source = large,
                                     .row_offset = offsets_.row,
                                     .term_offset = offsets_.term,
                                     .rows = rows,
                                     .terms = sides_.patch_size()},
                         .right = small,
                         .columns = columns});
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
