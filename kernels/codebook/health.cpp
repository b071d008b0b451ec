#include "health.hpp"

#include <algorithm>
#include <cmath>

#include "../core/parallel.hpp"
#include "../core/tree_sum.hpp"

namespace vqlab {
namespace {

constexpr int64_t kCodesPerPiece = 256;

template <class Count>
Usage usage(const Count* counts, int64_t K) {
  Usage result;
  double total = 0.0, sum = 0.0;  // entropy = log(total) - sum(n log n) / total
  for (int64_t k = 0; k < K; ++k) {
    if (counts[k] == 0) continue;
    const double n = double(counts[k]);
    ++result.used;
    total += n;
    sum += n * std::log(n);
  }
  if (total > 0.0) result.perplexity = std::exp(std::log(total) - sum / total);
  return result;
}

}  // namespace

void CodebookHealthOp::check() const {
  VQ_REQUIRE(codebook.rank == 2 && same_shape(codebook, previous),
             "health: codebook {} and previous {} differ", codebook.shape(), previous.shape());
  const int64_t K = codebook[0];
  VQ_REQUIRE(age.size() == K && counts.size() == K && cluster_size.size() == K && scratch.size() >= 2 * K,
             "health: age {}, counts {}, cluster_size {} or scratch {} does not fit codebook {}", age.shape(),
             counts.shape(), cluster_size.shape(), scratch.shape(), codebook.shape());
  VQ_REQUIRE(health.size() == 1 && poisoned.size() == 1, "health: result {} is not one element",
             health.shape());
}

Usage usage_of(const int64_t* counts, int64_t K) { return usage(counts, K); }

void run_cpu(const CodebookHealthOp& op) {
  if (op.poisoned.data[0]) return;
  const int64_t K = op.codebook[0], D = op.codebook[1];
  float* norms = op.scratch.data;
  float* moves = op.scratch.data + K;
  parallel_ranges(K, kCodesPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const float* code = op.codebook.data + k * D;
      float* before = op.previous.data + k * D;
      float norm = 0.0f, move = 0.0f;
      for (int64_t d = 0; d < D; ++d) {
        norm += code[d] * code[d];
        move += (code[d] - before[d]) * (code[d] - before[d]);
      }
      norms[k] = std::sqrt(norm);
      moves[k] = std::sqrt(move);
      std::copy_n(code, D, before);
      op.age.data[k] = op.counts.data[k] > 0 ? 0 : op.age.data[k] + 1;
    }
  });
  const Usage batch = usage(op.counts.data, K);
  const float mean_size = finish_sum(op.cluster_size.data, K) / float(K);
  const float norm_sum = finish_sum(norms, K);
  CodebookHealth health{.used = int32_t(batch.used), .perplexity = float(batch.perplexity)};
  int64_t age_sum = 0;
  for (int64_t k = 0; k < K; ++k) {
    health.dead += op.cluster_size.data[k] < op.threshold * mean_size;
    age_sum += op.age.data[k];
  }
  health.mean_age = float(double(age_sum) / double(K));
  health.mean_norm = norm_sum / float(K);
  health.drift = norm_sum > 0.0f ? finish_sum(moves, K) / norm_sum : 0.0f;
  op.health.data[0] = health;
}

}  // namespace vqlab
