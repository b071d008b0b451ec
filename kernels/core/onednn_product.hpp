// oneDNN's fp32 product: of the lookup `onednn`, and the yardstick of `compare`.
#pragma once

#include <cstdint>

namespace vqlab {

enum class RightFactor { plain, transposed };

// c (rows, columns) = a (rows, depth) times b, which is (depth, columns), or transposed (columns, depth).
// Terms are added in any order. On the calling thread alone; dense, row-major, all sizes at least 1. Throws
// Error(failed) where oneDNN refuses.
void onednn_product(float* c, const float* a, const float* b, int64_t rows, int64_t columns, int64_t depth,
                    RightFactor factor);

}  // namespace vqlab
