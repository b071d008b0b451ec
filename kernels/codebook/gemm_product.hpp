// The matrix product of the lookup variant `gemm`: cuBLASLt's on a GPU (gemm_product_cublas.cpp), a stand-in
// on an emulated device.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

// Whether the library was found. Needs no GPU, never throws.
bool gemm_product_available();

// Scratch of gemm_product, aligned to 256 bytes.
inline constexpr int64_t kGemmWorkspaceBytes = 4 << 20;

// product (rows, K) = latents (rows, D) times codebook (K, D), transposed; fp32 throughout, terms added in
// any order. rows, K, D in [1, 2^31). Pointers aligned to 4 bytes. Throws Error(failed) where the library
// refuses.
void gemm_product(float* product, const float* latents, const float* codebook, int64_t rows, int64_t K,
                  int64_t D, const View<std::byte>& workspace, Stream stream);

}  // namespace vqlab
