#include <cuda.h>

#include <cstring>

#include "cuda.hpp"
#include "tensor_map.hpp"

namespace vqlab {

TensorMap make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows) {
  check_tensor_map(data, rows, columns, box_rows);
  static const auto encode =
      reinterpret_cast<decltype(&::cuTensorMapEncodeTiled)>(driver_function("cuTensorMapEncodeTiled", 12000));
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(rows)}, row_bytes[] = {cuuint64_t(2 * columns)};
  const cuuint32_t box[] = {kBoxColumns, cuuint32_t(box_rows)}, every[] = {1, 1};
  CUtensorMap encoded;
  const CUresult status =
      encode(&encoded, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(data), sizes, row_bytes, box,
             every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  VQ_REQUIRE(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled of ({}, {}) in boxes of {} rows: error {}", rows,
             columns, box_rows, int(status));
  TensorMap map;
  static_assert(sizeof map == sizeof encoded && alignof(TensorMap) == alignof(CUtensorMap));
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

}  // namespace vqlab
