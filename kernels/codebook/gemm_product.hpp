// The matrix product of the lookup variant `gemm`: cuBLASLt's on a GPU (gemm_product_cublas.cpp), a stand-in
// on an emulated device.
#pragma once

#include <algorithm>

#include "../core/op.hpp"

namespace vqlab {

// Whether the library was found. Needs no GPU, never throws.
bool gemm_product_available();

// Scratch of gemm_product, aligned to 256 bytes: four partial products, from 4 MiB to the 32 MiB that cuBLAS
// itself takes on Hopper.
inline int64_t gemm_workspace_bytes(int64_t rows, int64_t K) {
  return std::clamp(4 * rows * K * int64_t(sizeof(float)), int64_t(4) << 20, int64_t(32) << 20);
}

// product (rows, K) = latents (rows, D) times codebook (K, D), transposed; fp32 throughout, terms added in
// any order. rows, K, D in [1, 2^31). Pointers aligned to 4 bytes. Throws Error(failed) where the library
// refuses.
void gemm_product(float* product, const float* latents, const float* codebook, int64_t rows, int64_t K,
                  int64_t D, const View<std::byte>& workspace, Stream stream);

}  // namespace vqlab
