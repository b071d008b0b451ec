#include <algorithm>
#include <cstring>

#include "../../core/parallel.hpp"
#include "../cluster_sums.hpp"

namespace vqlab {
namespace {

constexpr int64_t kCodesPerPiece = 16;
constexpr int64_t kTile = 64;  // dimensions whose accumulators stay in registers and L1

// order = the rows, stably sorted by code; start[k] = first place of code k in it, start[K] = N.
void counting_sort(const View<const int32_t>& codes, int64_t K, int32_t* start, int32_t* order) {
  std::memset(start, 0, size_t(K + 1) * sizeof(int32_t));
  for (int64_t n = 0; n < codes.size(); ++n) ++start[codes.data[n] + 1];
  for (int64_t k = 0; k < K; ++k) start[k + 1] += start[k];
  for (int64_t n = 0; n < codes.size(); ++n) order[start[codes.data[n]]++] = int32_t(n);
  for (int64_t k = K; k > 0; --k) start[k] = start[k - 1];  // each start had moved to its end
  start[0] = 0;
}

// Sum over the rows `order[0, count)` of dimensions [d0, d0 + width).
VQ_MULTIVERSION void sum_rows(const float* latents, int64_t D, const int32_t* order, int64_t count,
                              int64_t d0, int64_t width, float* sum) {
  float total[kTile] = {};
  for (int64_t chunk = 0; chunk < count; chunk += kClusterChunk) {
    float partial[kTile] = {};
    const int64_t end = std::min(count, chunk + kClusterChunk);
    for (int64_t i = chunk; i < end; ++i) {
      const float* row = latents + order[i] * D + d0;
      for (int64_t d = 0; d < width; ++d) partial[d] += row[d];
    }
    for (int64_t d = 0; d < width; ++d) total[d] += partial[d];
  }
  std::memcpy(sum, total, size_t(width) * sizeof(float));
}

void run(const ClusterSumsOp& op, Stream) {
  const int64_t K = op.sums[0], D = op.sums[1];
  int32_t* start = reinterpret_cast<int32_t*>(op.scratch.data);
  int32_t* order = start + K + 1;
  counting_sort(op.codes, K, start, order);
  parallel_ranges(K, kCodesPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t count = start[k + 1] - start[k];
      op.counts.data[k] = int32_t(count);
      for (int64_t d0 = 0; d0 < D; d0 += kTile)
        sum_rows(op.latents.data, D, order + start[k], count, d0, std::min(kTile, D - d0),
                 op.sums.data + k * D + d0);
    }
  });
}

}  // namespace

extern const ClusterSumsVariant cluster_sums_counting_sort;
const ClusterSumsVariant cluster_sums_counting_sort = {
    .name = "counting_sort",
    .device = Device::cpu,
    .idea = "counting sort of the rows by code, then the rows of each code in chunks, in order",
    .exact = true,
    .supports = [](int64_t, int64_t, int64_t) { return true; },
    .scratch_bytes = [](int64_t N, int64_t K, int64_t) { return (N + K + 1) * int64_t(sizeof(int32_t)); },
    .run = run};

}  // namespace vqlab
