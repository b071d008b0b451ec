#include "tensor_map.hpp"

#include "check.hpp"

namespace vqlab {

void check_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows) {
  constexpr int64_t kMost = int64_t(1) << 32;
  VQ_REQUIRE(reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns % 8 == 0,
             "tensor map: rows of {} elements from {} are not aligned to 16 bytes", columns, data);
  VQ_REQUIRE(rows >= 1 && rows < kMost && columns >= 1 && columns < kMost && box_rows >= 1 && box_rows <= 256,
             "tensor map: ({}, {}) in boxes of {} rows", rows, columns, box_rows);
}

}  // namespace vqlab
