// Scores from oneDNN's fp32 product, latents times codebook, in blocks of rows, and an argmax over each row
// of it: what a user without a fused kernel runs. Exact as lookup_scores.hpp has it. Ties: the lowest code.
// Mapping: a shard is a block of rows whose products take at most 4 MB. Traffic: N * K floats written and
// read twice, in pieces that stay in the caches; oneDNN packs the codebook once per block. Needs: K up to
// 32768.
#include "../../core/onednn_product.hpp"
#include "../lookup_scores.hpp"

namespace vqlab {
namespace {

constexpr int64_t kProductFloats = 1024 * 1024, kLeastRows = 32, kMostRows = 256;

int64_t rows_at_once(int64_t K) { return std::clamp(kProductFloats / K, kLeastRows, kMostRows); }

void run_onednn(const LookupOp& op, Stream) {
  const int64_t K = op.codebook[0], D = op.codebook[1];
  cpu_lookup::run_product_lookup(op, rows_at_once(K), [&](float* products, int64_t first_row, int64_t count) {
    onednn_product(products, op.latents.data + first_row * D, op.codebook.data, count, K, D,
                   RightFactor::transposed);
  });
}

}  // namespace

extern const LookupVariant lookup_onednn;
const LookupVariant lookup_onednn = {
    .name = "onednn",
    .device = Device::cpu,
    .idea = "oneDNN's fp32 product in blocks of rows, then an argmax; score64 where two are too close",
    .exact = true,
    .supports = [](int64_t, int64_t K,
                   int64_t D) { return K * kLeastRows <= kProductFloats && D <= int64_t(1) << 24; },
    .scratch_bytes = [](int64_t N, int64_t K,
                        int64_t) { return cpu_lookup::product_lookup_bytes(N, K, rows_at_once(K)); },
    .run = run_onednn,
};

}  // namespace vqlab
