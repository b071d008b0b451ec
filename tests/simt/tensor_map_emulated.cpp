// On the emulated device a tensor map is the matrix itself; the driver's encoding is not covered there.
#include <cstring>

#include "kernels/core/hopper.cuh"

namespace vqlab {

TensorMap make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows) {
  check_tensor_map(data, rows, columns, box_rows);
  const EmulatedTensorMap matrix{static_cast<const unsigned char*>(data), rows, columns, box_rows};
  TensorMap map{};
  std::memcpy(map.opaque, &matrix, sizeof matrix);
  return map;
}

}  // namespace vqlab
