// On the emulated device the product of the lookup variant `gemm` is three loops, run in stream order. So
// neither cuBLASLt nor how it is called is covered there.
#include "kernels/codebook/gemm_product.hpp"

#include <cmath>
#include <cstring>

#include "streams.hpp"

namespace vqlab {

bool gemm_product_available() { return true; }

void gemm_product(float* product, const float* latents, const float* codebook, int64_t rows, int64_t K,
                  int64_t D, const View<std::byte>& workspace, Stream stream) {
  VQ_REQUIRE(workspace.size() >= gemm_workspace_bytes(rows, K) &&
                 reinterpret_cast<uintptr_t>(workspace.data) % 256 == 0,
             "gemm_product: a workspace of {} bytes", workspace.size());
  simt::enqueue_library(
      stream.handle, "gemm_product",
      {simt::reads(latents, rows * D * 4), simt::reads(codebook, K * D * 4),
       simt::writes(product, rows * K * 4), simt::scratch(workspace.data, workspace.size())},
      [=] {
        std::memset(workspace.data, 0xFF, size_t(workspace.size()));
        for (int64_t row = 0; row < rows; ++row)
          for (int64_t k = 0; k < K; ++k) {
            float sum = 0.0f;
            for (int64_t d = 0; d < D; ++d) sum = std::fmaf(latents[row * D + d], codebook[k * D + d], sum);
            product[row * K + k] = sum;
          }
      });
}

}  // namespace vqlab
