// d_filter (S, k k L) = small (rows, S)^T x patches (rows, k k L) of the large side, by fmaf in fp32, of
// factors rounded to the precision.
// Mapping: a block owns a tile of d_filter and a slice of the rows, in slabs of 32; its threads form groups,
// each with all of the tile, 4 or 8 x 4 sums a thread, and its own rows of a slab; a second kernel adds
// slices. Traffic: both sides once per tile, from L2; 8 bytes per element of d_filter and slice. Shared
// memory: 8 to 32 KiB; 1 KiB. Needs: fewer than 2^30 rows and 2^20 channels; 16 bytes at a time where
// channels divide by 4.
// Predicted for an H100, batch 128 (rows, flop, bytes of slices, us of both kernels): 4x4, 1 <-> 16: 25 k, 13
// M, 0.4 M, 6. 4x4, 16 <-> 32: 6 k, 103 M, 3.2 M, 9. 3x3, 16 -> 32: 6 k, 58 M, 1.8 M, 7. 3x3, 32 -> 32: 6 k,
// 116 M, 2.4 M, 10. 1x1, 32 -> 32: 6 k, 13 M, 0.8 M, 5. Measured: not yet run on a GPU.
#include "weight_gradient.hpp"

#include "../core/elementwise.cuh"
#include "../core/grid.hpp"

namespace vqlab {
namespace {

constexpr const char* kName = "convolution weight gradient";
constexpr int kBlock = 128;
constexpr int kSlab = 32;              // rows in shared memory at a time
constexpr int kMultiprocessors = 132;  // of an H100: how the sums are cut must not depend on the GPU at hand
constexpr int kSumColumns = 16, kSumLanes = 16;

// What the kernels need of the shape. Columns of the filter: (ky * kernel + kx) * large_channels + l.
struct Sizes {
  int rows, slice_rows;   // all; of a slice, a multiple of kSlab
  int channels, columns;  // of the filter
  int small_pitch, small_height, small_width;
  int large_pitch, large_height, large_width, large_channels;
  int kernel, stride, padding;
  Precision precision;  // of the factors, which are rounded on the way to shared memory
};

// kSmall x kLarge elements of the filter; a thread owns kThread x 4 of them.
template <int kSmall, int kLarge, int kThread>
struct Tile {
  static constexpr int kSmallSize = kSmall, kLargeSize = kLarge, kThreadSize = kThread;
  static constexpr int kAcross = kLarge / 4, kGroup = kSmall / kThread * kAcross, kGroups = kBlock / kGroup;
  static constexpr int kSlabQuads = kSlab * (kSmall + kLarge) / 4;
  static constexpr int kResident = kThread == 4 ? 4 : 3;  // blocks of a multiprocessor: registers limit them
  static_assert(kThread % 4 == 0 && kBlock % kGroup == 0 && kSlab % kGroups == 0);
  static_assert(kGroups * kSmall * kLarge <= 2 * kSlabQuads * 4);  // sums lie where the slabs were
};

// How the block carries kSize columns of a slab to shared memory: a thread carries kWidth neighbouring
// columns of every kDown-th row.
template <int kSize, int kWidth>
struct Carry {
  static constexpr int kAcross = kSize / kWidth, kDown = kBlock / kAcross, kLoads = kSlab / kDown;
  static_assert(kBlock % kAcross == 0 && kSlab % kDown == 0);
  static __device__ int column() { return int(threadIdx.x) % kAcross * kWidth; }
  static __device__ int row() { return int(threadIdx.x) / kAcross; }

  // slab [kSlab][kSize]
  static __device__ void store(float* slab, Floats<kWidth> (&values)[kLoads], Precision precision) {
    if (precision != Precision::fp32) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          values[i].at[j] = __uint_as_float(round_bits(__float_as_uint(values[i].at[j]), precision));
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) store_floats(slab + (row() + i * kDown) * kSize + column(), values[i]);
  }
};

template <int kWidth>
__device__ inline Floats<kWidth> no_floats() {
  Floats<kWidth> zeros;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) zeros.at[i] = 0.0f;
  return zeros;
}

// Half the instructions of a signed division.
__device__ inline int divide(int a, int b) { return int(unsigned(a) / unsigned(b)); }

__device__ inline float* floats(float4* quads) { return reinterpret_cast<float*>(quads); }

// This thread's channels of the small side, slab after slab.
template <int kSize, int kWidth>
class SmallReader {
 public:
  using C = Carry<kSize, kWidth>;

  __device__ SmallReader(const float* small, const Sizes& sizes, int first_row, int first_channel)
      : step_(int64_t(C::kDown) * sizes.small_pitch),
        inside_(first_channel + C::column() < sizes.channels),
        next_(small + int64_t(first_row + C::row()) * sizes.small_pitch + first_channel + C::column()) {}

  // The next slab, of which the first `rows` rows exist.
  __device__ void read(Floats<kWidth> (&values)[C::kLoads], int rows) {
#pragma unroll
    for (int i = 0; i < C::kLoads; ++i) {
      values[i] = no_floats<kWidth>();
      if (inside_ && C::row() + i * C::kDown < rows) values[i] = load_floats<kWidth>(next_);
      next_ += step_;
    }
  }

 private:
  int64_t step_;
  bool inside_;
  const float* next_;
};

// The same for this thread's columns of the patches: pixel (y, x) of the large side is followed from row to
// row instead of divided out again.
template <int kSize, int kWidth>
class PatchReader {
 public:
  using C = Carry<kSize, kWidth>;

  __device__ PatchReader(const float* large, const Sizes& s, int first_row, int first_column)
      : sizes_(s), image_size_(int64_t(s.large_height) * s.large_width * s.large_pitch) {
    const int column = first_column + C::column();
    const int pixel = divide(column, s.large_channels), ky = divide(pixel, s.kernel),
              kx = pixel - ky * s.kernel;
    const int line = divide(first_row + C::row(), s.small_width), image = divide(line, s.small_height);
    const int y = line - image * s.small_height, x = first_row + C::row() - line * s.small_width;
    height_ = column < s.columns ? s.large_height : 0;  // else nothing is inside
    y_ = y * s.stride + ky - s.padding, x_ = x * s.stride + kx - s.padding;
    y_end_ = s.small_height * s.stride + ky - s.padding, x_end_ = s.small_width * s.stride + kx - s.padding;
    image_ = large + image * image_size_ + (column - pixel * s.large_channels);
    const int lines = divide(C::kDown, s.small_width), images = divide(lines, s.small_height);
    x_step_ = (C::kDown - lines * s.small_width) * s.stride;
    y_step_ = (lines - images * s.small_height) * s.stride;
    image_step_ = images * image_size_;
  }

  __device__ void read(Floats<kWidth> (&values)[C::kLoads], int rows) {
#pragma unroll
    for (int i = 0; i < C::kLoads; ++i) {
      values[i] = no_floats<kWidth>();
      const bool inside = unsigned(y_) < unsigned(height_) && unsigned(x_) < unsigned(sizes_.large_width);
      if (inside && C::row() + i * C::kDown < rows)
        values[i] = load_floats<kWidth>(image_ + (y_ * sizes_.large_width + x_) * sizes_.large_pitch);
      step();
    }
  }

 private:
  __device__ void step() {
    x_ += x_step_, y_ += y_step_, image_ += image_step_;
    if (x_ >= x_end_) x_ -= sizes_.small_width * sizes_.stride, y_ += sizes_.stride;
    if (y_ >= y_end_) y_ -= sizes_.small_height * sizes_.stride, image_ += image_size_;
  }

  const Sizes& sizes_;
  int64_t image_size_, image_step_;
  const float* image_;
  int y_, x_, y_end_, x_end_, y_step_, x_step_, height_;
};

// sums += small^T x patches over this group's rows of a slab; small [kSlab][kSmallSize], patches
// [kSlab][kLargeSize].
template <class T>
__device__ inline void multiply_slab(float (&sums)[T::kThreadSize][4], const float* small,
                                     const float* patches) {
  const int thread = int(threadIdx.x) % T::kGroup, group = int(threadIdx.x) / T::kGroup;
  small += thread / T::kAcross * T::kThreadSize, patches += thread % T::kAcross * 4;
#pragma unroll 4
  for (int i = 0; i < kSlab / T::kGroups; ++i) {
    const int row = i * T::kGroups + group;
    const Floats<4> p = load_floats<4>(patches + row * T::kLargeSize);
#pragma unroll
    for (int first = 0; first < T::kThreadSize; first += 4) {
      const Floats<4> s = load_floats<4>(small + row * T::kSmallSize + first);
#pragma unroll
      for (int j = 0; j < 16; ++j)
        sums[first + j / 4][j % 4] = fmaf(s.at[j / 4], p.at[j % 4], sums[first + j / 4][j % 4]);
    }
  }
}

// slice_sums (slices, channels, columns); small (rows, small_pitch); large (images, large_height,
// large_width, large_pitch). The grid: tiles of columns, tiles of channels, slices.
template <class T, int kSmallWidth, int kLargeWidth>
__global__ void __launch_bounds__(kBlock, T::kResident)
    weight_gradient_kernel(float* slice_sums, const float* small, const float* large, const Sizes sizes) {
  VQ_SHARED(float4, slabs, [2][T::kSlabQuads]);  // of small, then of patches
  constexpr int kPatches = kSlab * T::kSmallSize;
  const int first_column = int(blockIdx.x) * T::kLargeSize, first_channel = int(blockIdx.y) * T::kSmallSize;
  const int first_row = int(blockIdx.z) * sizes.slice_rows;
  int rows_left = min(sizes.slice_rows, sizes.rows - first_row);

  SmallReader<T::kSmallSize, kSmallWidth> small_reader(small, sizes, first_row, first_channel);
  PatchReader<T::kLargeSize, kLargeWidth> patch_reader(large, sizes, first_row, first_column);
  Floats<kSmallWidth> next_small[Carry<T::kSmallSize, kSmallWidth>::kLoads];
  Floats<kLargeWidth> next_patches[Carry<T::kLargeSize, kLargeWidth>::kLoads];
  const auto read_next = [&] {
    const int rows = min(rows_left, kSlab);
    patch_reader.read(next_patches, rows);
    small_reader.read(next_small, rows);
  };
  const auto store_next = [&](int buffer) {
    float* slab = floats(slabs[buffer]);
    Carry<T::kSmallSize, kSmallWidth>::store(slab, next_small, sizes.precision);
    Carry<T::kLargeSize, kLargeWidth>::store(slab + kPatches, next_patches, sizes.precision);
  };

  float sums[T::kThreadSize][4] = {};
  read_next();
  store_next(0);
  __syncthreads();  // the first slab is stored before it is multiplied
  for (int buffer = 0;; buffer ^= 1) {
    rows_left -= kSlab;
    if (rows_left > 0) read_next();
    multiply_slab<T>(sums, floats(slabs[buffer]), floats(slabs[buffer]) + kPatches);
    if (rows_left <= 0) break;
    store_next(buffer ^ 1);
    __syncthreads();  // a slab has been read before it is overwritten, the next is stored before it is read
  }

  __syncthreads();                       // the last slab has been read before sums overwrite it
  float* group_sums = floats(slabs[0]);  // [kGroups][kSmallSize][kLargeSize]
  constexpr int kTileSize = T::kSmallSize * T::kLargeSize;
  const int thread = int(threadIdx.x) % T::kGroup, group = int(threadIdx.x) / T::kGroup;
#pragma unroll
  for (int i = 0; i < T::kThreadSize; ++i) {
    const int row = thread / T::kAcross * T::kThreadSize + i;
    store_floats<4>(group_sums + group * kTileSize + row * T::kLargeSize + thread % T::kAcross * 4,
                    {{sums[i][0], sums[i][1], sums[i][2], sums[i][3]}});
  }
  __syncthreads();  // group_sums of all groups
  for (int i = int(threadIdx.x); i < kTileSize; i += kBlock) {
    float sum = group_sums[i];
#pragma unroll
    for (int g = 1; g < T::kGroups; ++g) sum += group_sums[g * kTileSize + i];
    const int channel = first_channel + i / T::kLargeSize, column = first_column + i % T::kLargeSize;
    if (channel < sizes.channels && column < sizes.columns)
      slice_sums[(int64_t(blockIdx.z) * sizes.channels + channel) * sizes.columns + column] = sum;
  }
}

// d_filter (size) = the sum of slice_sums (slices, size): a lane adds every kSumLanes-th slice, then the
// lanes are added pairwise.
__global__ void __launch_bounds__(kSumColumns* kSumLanes)
    add_slices_kernel(float* d_filter, const float* slice_sums, int64_t size, int slices) {
  VQ_SHARED(float, lane_sums, [kSumLanes][kSumColumns]);
  const int column = int(threadIdx.x) % kSumColumns, lane = int(threadIdx.x) / kSumColumns;
  const int64_t i = int64_t(blockIdx.x) * kSumColumns + column;
  float sum = 0.0f;
  if (i < size)
#pragma unroll 8
    for (int slice = lane; slice < slices; slice += kSumLanes) sum += slice_sums[slice * size + i];
  lane_sums[lane][column] = sum;
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    __syncthreads();  // lane_sums of the lanes, before they are read by half as many
    if (lane < half) lane_sums[lane][column] += lane_sums[lane + half][column];
  }
  if (lane == 0 && i < size) d_filter[i] = lane_sums[0][column];
}

using Kernel = void (*)(float*, const float*, const float*, Sizes);

template <class T>
Kernel kernel_for(bool small_quads, bool large_quads) {
  if (!small_quads) return weight_gradient_kernel<T, 1, 1>;
  return large_quads ? weight_gradient_kernel<T, 4, 4> : weight_gradient_kernel<T, 4, 1>;
}

// The tile for a filter, and how many there are of it.
struct Tiling {
  int small, large, resident;
  Kernel (*kernel)(bool small_quads, bool large_quads);
  int64_t row_tiles, column_tiles, tiles;

  Tiling(int64_t channels, int64_t columns) {
    if (channels <= 16 && columns <= 64)
      set<Tile<16, 16, 4>>();
    else if (columns <= 32)
      set<Tile<32, 32, 4>>();
    else if (channels <= 32)
      set<Tile<32, 64, 8>>();
    else
      set<Tile<64, 64, 8>>();
    column_tiles = (columns + large - 1) / large;
    row_tiles = (channels + small - 1) / small;
    tiles = row_tiles * column_tiles;
  }

 private:
  template <class T>
  void set() {
    small = T::kSmallSize, large = T::kLargeSize, resident = T::kResident, kernel = kernel_for<T>;
  }
};

struct Slices {
  int64_t count, rows;

  // As many as the GPU runs blocks of at once, of whole slabs.
  Slices(int64_t all_rows, const Tiling& tiling) {
    const int64_t slabs = (all_rows + kSlab - 1) / kSlab;
    const int64_t most = std::max(int64_t(1), tiling.resident * kMultiprocessors / tiling.tiles);
    const int64_t slice_slabs = (slabs + most - 1) / most;
    count = (slabs + slice_slabs - 1) / slice_slabs, rows = slice_slabs * kSlab;
  }
};

int64_t row_count(const ConvProblem& p) { return p.batch * p.small_height * p.small_width; }

}  // namespace

int64_t weight_gradient_scratch_bytes(const ConvProblem& problem, int64_t small_channels,
                                      int64_t large_channels) {
  // Several slices make 4 * kMultiprocessors blocks at most, of 64 x 64 sums at most.
  static_assert(4 * kMultiprocessors * 64 * 64 * int64_t(sizeof(float)) <= kConvWorkspaceBytes);
  const int64_t columns = problem.kernel * problem.kernel * large_channels;
  const Slices slices(row_count(problem), Tiling(small_channels, columns));
  return slices.count == 1 ? 0 : slices.count * small_channels * columns * int64_t(sizeof(float));
}

void weight_gradient_cuda(const View<float>& d_filter, const ConvProblem& p, const float* large,
                          const float* small, const View<std::byte>& scratch, Stream stream) {
  const int64_t channels = d_filter[0], L = d_filter[3], size = d_filter.size(), columns = size / channels;
  const Tiling tiling(channels, columns);
  const Slices slices(row_count(p), tiling);
  require_scratch(kName, scratch, weight_gradient_scratch_bytes(p, channels, L));
  const auto in_32_bits = [](int64_t count) { return int(size_in_32_bits(kName, count)); };
  const Sizes sizes{.rows = in_32_bits(row_count(p)),
                    .slice_rows = in_32_bits(slices.rows),
                    .channels = in_32_bits(channels),
                    .columns = in_32_bits(columns),
                    .small_pitch = in_32_bits(p.small_channels),
                    .small_height = in_32_bits(p.small_height),
                    .small_width = in_32_bits(p.small_width),
                    .large_pitch = in_32_bits(p.large_channels),
                    .large_height = in_32_bits(p.large_height),
                    .large_width = in_32_bits(p.large_width),
                    .large_channels = int(L),
                    .kernel = int(p.kernel),
                    .stride = int(p.stride),
                    .padding = int(p.padding),
                    .precision = p.precision};
  const bool small_quads = p.small_channels % 4 == 0 && aligned_to_16_bytes(small);
  const bool large_quads = p.large_channels % 4 == 0 && L % 4 == 0 && aligned_to_16_bytes(large);
  float* slice_sums = slices.count == 1 ? d_filter.data : reinterpret_cast<float*>(scratch.data);
  launch("weight_gradient", tiling.kernel(small_quads, large_quads),
         {dim3(unsigned(tiling.column_tiles), unsigned(tiling.row_tiles), unsigned(slices.count)),
          unsigned(kBlock)},
         stream, slice_sums, small, large, sizes);
  if (slices.count > 1)
    launch(
        "add_slices", add_slices_kernel,
        {size_in_32_bits(kName, (size + kSumColumns - 1) / kSumColumns), unsigned(kSumColumns * kSumLanes)},
        stream, d_filter.data, slice_sums, size, int(slices.count));
}

}  // namespace vqlab
