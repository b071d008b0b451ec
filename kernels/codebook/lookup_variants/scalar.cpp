// Score of every pair in fp32, one product after the other: the readable baseline, and what vectors (`fused`,
// compiled for each instruction set) gain. Exact as lookup_scores.hpp has it. Ties: the lowest code. Mapping:
// a shard is 8 rows. Traffic: K * D floats of codebook per row, from L2. Needs: K up to 2^17, for its
// scratch.
#include "../lookup_scores.hpp"

namespace vqlab {
namespace {

constexpr int64_t kRows = 8;

void run_scalar(const LookupOp& op, Stream) {
  const int64_t K = op.codebook[0], D = op.codebook[1];
  cpu_lookup::run_product_lookup(op, kRows, [&](float* products, int64_t first_row, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < K; ++k) {
        const float* latent = op.latents.data + (first_row + i) * D;
        const float* code = op.codebook.data + k * D;
        float product = 0.0f;
        for (int64_t d = 0; d < D; ++d) product += latent[d] * code[d];
        products[i * K + k] = product;
      }
  });
}

}  // namespace

extern const LookupVariant lookup_scalar;
const LookupVariant lookup_scalar = {
    .name = "scalar",
    .device = Device::cpu,
    .idea = "fp32 scores one after the other, without vectors; score64 where two are too close",
    .exact = true,
    .supports = [](int64_t, int64_t K, int64_t) { return K <= int64_t(1) << 17; },
    .scratch_bytes = [](int64_t N, int64_t K,
                        int64_t) { return cpu_lookup::product_lookup_bytes(N, K, kRows); },
    .run = run_scalar,
};

}  // namespace vqlab
