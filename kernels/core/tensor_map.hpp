// A matrix in global memory as the tensor memory accelerator of sm_90 sees it: CUDA's CUtensorMap, made by
// the driver (tensor_map_driver.cpp), or a stand-in on an emulated device.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vqlab {

struct alignas(128) TensorMap {
  std::byte opaque[128];
};

// A matrix (rows, columns) of 16-bit elements, cut into boxes of box_rows x 64: rows of 128 bytes, swizzled
// in shared memory (cuTensorMapEncodeTiled, CU_TENSOR_MAP_SWIZZLE_128B): the 16-byte part p of row r of a box
// lies where part p ^ (r % 8) would. `data` is aligned to 16 bytes, columns is a multiple of 8, box_rows at
// most 256, rows and columns below 2^32. Throws Error(failed) on anything else, Error(device) where the
// driver has no tensor maps.
TensorMap make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows);
void check_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows);  // what it accepts

inline constexpr int kBoxColumns = 64;

}  // namespace vqlab
