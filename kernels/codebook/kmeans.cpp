#include "kmeans.hpp"

#include <cstring>

#include "cluster_sums.hpp"
#include "lookup.hpp"

namespace vqlab {
namespace {

// Byte offsets of the parts; every part starts at a multiple of 256 bytes.
struct Offsets {
  int64_t codes, counts, sums, work, end;
  Offsets(Device device, int64_t N, int64_t K, int64_t D) {
    const auto after = [](int64_t offset, int64_t bytes) { return (offset + bytes + 255) / 256 * 256; };
    codes = 256;  // room to align the start
    counts = after(codes, N * 4);
    sums = after(counts, K * 4);
    work = after(sums, K * D * 4);
    end = after(work,
                std::max(lookup_scratch_bytes(device, N, K, D), cluster_sums_scratch_bytes(device, N, K, D)));
  }
};

}  // namespace

int64_t kmeans_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D) {
  return Offsets(device, N, K, D).end;
}

KMeansScratch::KMeansScratch(const KMeansOp& op, Device device) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const Offsets offsets(device, N, K, D);
  require_scratch("kmeans", op.scratch, offsets.end);
  std::byte* base = op.scratch.data + (256 - reinterpret_cast<uintptr_t>(op.scratch.data) % 256) % 256 - 256;
  codes = {reinterpret_cast<int32_t*>(base + offsets.codes), {N}};
  counts = {reinterpret_cast<int32_t*>(base + offsets.counts), {K}};
  sums = {reinterpret_cast<float*>(base + offsets.sums), {K, D}};
  work = {base + offsets.work, {offsets.end - offsets.work}};
}

void KMeansOp::check() const {
  VQ_REQUIRE(codebook.rank == 2 && latents.rank == 2 && latents[1] == codebook[1] && latents[0] >= 1,
             "kmeans: codebook {} and latents {} disagree", codebook.shape(), latents.shape());
  VQ_REQUIRE(
      cluster_size.size() == codebook[0] && same_shape(cluster_sum, codebook) && first_bad_row.size() == 1,
      "kmeans: cluster_size {} or cluster_sum {} does not fit codebook {}", cluster_size.shape(),
      cluster_sum.shape(), codebook.shape());
  VQ_REQUIRE(rounds >= 1 && count_scale > 0.0f, "kmeans: {} rounds or count_scale {} out of range", rounds,
             count_scale);
}

void run_cpu(const KMeansOp& op) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const auto [codes, counts, sums, work] = KMeansScratch(op, Device::cpu);

  const Permutation rows(op.key, uint64_t(N));
  for (int64_t k = 0; k < K; ++k)
    std::memcpy(op.codebook.data + k * D, op.latents.data + int64_t(rows(uint64_t(k % N))) * D,
                size_t(D) * sizeof(float));
  const Stream cpu;
  for (int round = 0; round < op.rounds; ++round) {
    run(LookupOp{codes, op.first_bad_row, op.latents, op.codebook, work, op.lookup}, cpu);
    run(ClusterSumsOp{counts, sums, op.latents, codes, work, op.cluster_sums}, cpu);
    for (int64_t k = 0; k < K; ++k)
      if (const int32_t count = counts.data[k]; count > 0)
        for (int64_t d = 0; d < D; ++d) op.codebook.data[k * D + d] = sums.data[k * D + d] / float(count);
  }
  for (int64_t k = 0; k < K; ++k) {
    const float size = op.count_scale * float(counts.data[k]);
    op.cluster_size.data[k] = size;
    for (int64_t d = 0; d < D; ++d) op.cluster_sum.data[k * D + d] = size * op.codebook.data[k * D + d];
  }
}

}  // namespace vqlab
