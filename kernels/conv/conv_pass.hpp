// The passes of a convolution over shards of images, each with its parts of the op's scratch. Private to
// conv2d.cpp.
#pragma once

#include "../core/column_sums.hpp"
#include "patch_grid.hpp"

namespace vqlab {

// Cuts an op's scratch into aligned arrays. Without memory it only counts.
class ScratchCutter {
 public:
  explicit ScratchCutter(const View<std::byte>& scratch)
      : begin_(reinterpret_cast<uintptr_t>(scratch.data)), at_(begin_) {}

  template <class T>
  T* take(int64_t count) {
    at_ = (at_ + kAlign - 1) / kAlign * kAlign;
    T* const array = reinterpret_cast<T*>(at_);
    at_ += uintptr_t(count) * sizeof(T);
    return array;
  }
  // With room for any alignment of the memory.
  int64_t bytes() const { return int64_t(at_ - begin_ + kAlign); }

 private:
  static constexpr uintptr_t kAlign = 64;
  uintptr_t begin_, at_;
};

// An array per worker, or per shard.
struct FloatArrays {
  float* first;
  int64_t size;

  FloatArrays(ScratchCutter& scratch, int64_t count, int64_t each)
      : first(scratch.take<float>(count * each)), size(each) {}
  float* operator[](int64_t i) const { return first + i * size; }
};

// The offsets of all grids of a product, one after the other.
struct Offsets {
  int32_t *row, *output, *term;

  Offsets(ScratchCutter& scratch, int64_t rows, int64_t terms)
      : row(scratch.take<int32_t>(rows)),
        output(scratch.take<int32_t>(rows)),
        term(scratch.take<int32_t>(terms)) {}
};

// A convolution from one side to the other.
class SidePass {
 public:
  SidePass(const ConvSides& sides, Direction direction, ScratchCutter& scratch);

  // Once per op, before run: the weight and the tables that all shards share.
  void prepare(const float* weight, const View<const float>& bias) const;
  // `images` images from the side that is read to the other.
  void run(float* output, const float* input, int64_t images, bool relu, int worker) const;

  const ImageSize& to() const { return to_; }

 private:
  int64_t panel_floats() const { return panels(to_.c) * kPanel; }
  int64_t terms() const { return sides_.kernel * sides_.kernel * from_.c; }
  template <class Visit>
  void for_each_phase(const Visit& visit) const;
  template <class Visit>
  void for_each_grid(const Visit& visit) const;

  ConvSides sides_;
  Direction direction_;
  ImageSize from_, to_;
  float *weight_, *bias_;
  Offsets offsets_;
};

// Towards a large side of few channels the columns of a SidePass would be nearly empty. Here a 1x1
// convolution computes for each small pixel the whole patch that it adds to the large image.
class ScatterPass {
 public:
  static bool serves(const ConvSides& sides) { return sides.large.c <= 4; }

  ScatterPass(const ConvSides& sides, ScratchCutter& scratch);

  void prepare(const float* weight, const View<const float>& bias) const;
  void run(float* output, const float* input, int64_t images, bool relu, int worker) const;

 private:
  void paint(float* canvas, const float* patches) const;
  void crop(float* output, const float* canvas, bool relu) const;

  ConvSides sides_;
  ImageSize canvas_size_;  // the large image with room for the parts of patches that fall outside
  SidePass to_patches_;
  float* bias_;  // of a row of the large image
  FloatArrays patches_, canvases_;
};

// The gradient of the weight.
class WeightPass {
 public:
  WeightPass(const ConvSides& sides, int64_t shards, ScratchCutter& scratch);

  void prepare() const;
  // The sum over the images of one shard.
  void run(int64_t shard, const float* large, const float* small, int64_t images, int worker) const;
  // Adds up the shards, in their order.
  void finish(float* d_weight, int64_t shards) const;

 private:
  int64_t columns() const { return panels(sides_.small.c) * kPanel; }
  template <class Visit>
  void for_each_grid(const Visit& visit) const;

  ConvSides sides_;
  Offsets offsets_;
  FloatArrays gradients_, padded_rights_;
};

// The gradient of the bias: the sums over all pixels, in the order of column_sums.hpp.
class BiasPass {
 public:
  BiasPass(int64_t pixels, int64_t channels, ScratchCutter& scratch);

  // The slices that begin in pixels [begin, end), and may reach beyond.
  void run(const float* d_output, int64_t begin, int64_t end, int worker) const;
  // Adds up the slices.
  void finish(float* d_bias) const;

 private:
  int64_t pixels_, channels_;
  ColumnSlices slices_;
  FloatArrays slice_sums_, lane_sums_;
};

}  // namespace vqlab
