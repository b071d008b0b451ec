#include "restart.hpp"

#include <cstring>

#include "../core/random.hpp"
#include "../core/tree_sum.hpp"

namespace vqlab {

void RestartOp::check() const {
  VQ_REQUIRE(codebook.rank == 2 && latents.rank == 2 && latents[1] == codebook[1] && latents[0] >= 1,
             "restart: codebook {} and latents {} disagree", codebook.shape(), latents.shape());
  VQ_REQUIRE(cluster_size.size() == codebook[0], "restart: cluster_size {} does not fit codebook {}",
             cluster_size.shape(), codebook.shape());
  for (const View<float>& like : {cluster_sum, moment1, moment2})
    VQ_REQUIRE(!like || same_shape(like, codebook), "restart: {} does not fit codebook {}", like.shape(),
               codebook.shape());
  VQ_REQUIRE(replaced.size() == 1 && state.size() == 1 && poisoned.size() == 1,
             "restart: a scalar is missing");
  VQ_REQUIRE(threshold >= 0.0f && threshold < 1.0f && every >= 1,
             "restart: threshold {} or every {} out of range", threshold, every);
}

void run_cpu(const RestartOp& op) {
  op.replaced.data[0] = 0;
  const int64_t step = op.state.data->step;
  if (op.poisoned.data[0] || op.threshold == 0.0f || (step + 1) % op.every != 0) return;
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const float mean = finish_sum(op.cluster_size.data, K) / float(K);
  const Permutation rows({.seed = op.seed, .step = uint32_t(step), .use = RandomUse::restart}, uint64_t(N));
  int32_t replaced = 0;
  for (int64_t k = 0; k < K && replaced < N; ++k) {
    if (!(op.cluster_size.data[k] < op.threshold * mean)) continue;
    const float* latent = op.latents.data + int64_t(rows(uint64_t(replaced++))) * D;
    std::memcpy(op.codebook.data + k * D, latent, size_t(D) * sizeof(float));
    op.cluster_size.data[k] = mean;
    if (op.cluster_sum)
      for (int64_t d = 0; d < D; ++d) op.cluster_sum.data[k * D + d] = mean * latent[d];
    for (const View<float>& moment : {op.moment1, op.moment2})
      if (moment) std::memset(moment.data + k * D, 0, size_t(D) * sizeof(float));
  }
  op.replaced.data[0] = replaced;
}

}  // namespace vqlab
