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
    const float* code = op.codebook.data + k * D;
    const float* sum = op.sums.data + k * D;
    float* d_code = op.d_codebook.data + k * D;
    for (int64_t d = 0; d < D; ++d) d_code[d] = scale * (count * code[d] - sum[d]);
  }
}

void check_decay(const char* name, float decay) {
  VQ_REQUIRE(decay >= 0.0f && decay < 1.0f, "{}: decay {} is not in [0, 1)", name, decay);
}

}  // namespace

void EmaUpdateOp::check() const {
  VQ_REQUIRE(codebook.rank == 2 && same_shape(codebook, sums) && same_shape(codebook, cluster_sum),
             "ema_update: codebook {}, sums {} and cluster_sum {} differ", codebook.shape(), sums.shape(),
             cluster_sum.shape());
  VQ_REQUIRE(cluster_size.size() == codebook[0] && counts.size() == codebook[0] && poisoned.size() == 1,
             "ema_update: cluster_size {} or counts {} does not fit codebook {}", cluster_size.shape(),
             counts.shape(), codebook.shape());
  check_decay("ema_update", decay);
}

void CodebookGradientOp::check() const {
  VQ_REQUIRE(codebook.rank == 2 && same_shape(codebook, sums) && same_shape(codebook, d_codebook),
             "codebook_gradient: codebook {}, sums {} and d_codebook {} differ", codebook.shape(),
             sums.shape(), d_codebook.shape());
  VQ_REQUIRE(counts.size() == codebook[0], "codebook_gradient: counts {} do not fit codebook {}",
             counts.shape(), codebook.shape());
}

void AverageCountsOp::check() const {
  VQ_REQUIRE(cluster_size.size() == counts.size() && poisoned.size() == 1,
             "average_counts: cluster_size {} and counts {} differ", cluster_size.shape(), counts.shape());
  check_decay("average_counts", decay);
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

void run_cpu(const AverageCountsOp& op) {
  if (op.poisoned.data[0]) return;
  for (int64_t k = 0; k < op.counts.size(); ++k)
    op.cluster_size.data[k] =
        op.decay * op.cluster_size.data[k] + (1.0f - op.decay) * float(op.counts.data[k]);
}

}  // namespace vqlab
