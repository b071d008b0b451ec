#include "ema_update.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kCodesPerPiece = 256;

VQ_MULTIVERSION void update_codes(const EmaUpdateOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.codebook[1];
  const float keep = op.decay, take = 1.0f - op.decay;
  for (int64_t k = begin; k < end; ++k) {
    const float size = keep * op.cluster_size.data[k] + take * float(op.counts.data[k]);
    op.cluster_size.data[k] = size;
    float* sum = op.cluster_sum.data + k * D;
    const float* batch = op.sums.data + k * D;
    for (int64_t d = 0; d < D; ++d) sum[d] = keep * sum[d] + take * batch[d];
    if (size < kMinimumClusterSize) continue;
    float* code = op.codebook.data + k * D;
    for (int64_t d = 0; d < D; ++d) code[d] = sum[d] / size;
  }
}

VQ_MULTIVERSION void gradient_codes(const CodebookGradientOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.codebook[1];
  const float scale = op.scale;
  for (int64_t k = begin; k < end; ++k) {
    const float count = float(op.counts.data[k]);
    op.cluster_size.data[k] = op.decay * op.cluster_size.data[k] + (1.0f - op.decay) * count;
    const float* code = op.codebook.data + k * D;
    const float* sum = op.sums.data + k * D;
    float* d_code = op.d_codebook.data + k * D;
    for (int64_t d = 0; d < D; ++d) d_code[d] = scale * (count * code[d] - sum[d]);
  }
}

template <class Op>
void check_codes(const Op& op, const char* name) {
  VQ_REQUIRE(op.codebook.rank == 2 && same_shape(op.codebook, op.sums), "{}: codebook {} and sums {} differ",
             name, op.codebook.shape(), op.sums.shape());
  VQ_REQUIRE(op.cluster_size.size() == op.codebook[0] && op.counts.size() == op.codebook[0],
             "{}: cluster_size {} or counts {} does not fit codebook {}", name, op.cluster_size.shape(),
             op.counts.shape(), op.codebook.shape());
  VQ_REQUIRE(op.decay >= 0.0f && op.decay < 1.0f, "{}: decay {} is not in [0, 1)", name, op.decay);
}

}  // namespace

void EmaUpdateOp::check() const {
  check_codes(*this, "ema_update");
  VQ_REQUIRE(same_shape(codebook, cluster_sum) && poisoned.size() == 1,
             "ema_update: codebook {} and cluster_sum {} differ", codebook.shape(), cluster_sum.shape());
}

void CodebookGradientOp::check() const {
  check_codes(*this, "codebook_gradient");
  VQ_REQUIRE(same_shape(codebook, d_codebook), "codebook_gradient: codebook {} and d_codebook {} differ",
             codebook.shape(), d_codebook.shape());
}

void run_cpu(const EmaUpdateOp& op) {
  if (op.poisoned.data[0]) return;
  parallel_ranges(op.codebook[0], kCodesPerPiece,
                  [&](int64_t begin, int64_t end) { update_codes(op, begin, end); });
}

void run_cpu(const CodebookGradientOp& op) {
  parallel_ranges(op.codebook[0], kCodesPerPiece,
                  [&](int64_t begin, int64_t end) { gradient_codes(op, begin, end); });
}

}  // namespace vqlab
