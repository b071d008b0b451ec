#include "cluster_sums.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/names.hpp"
#include "../core/parallel.hpp"

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

void run_counting_sort(const ClusterSumsOp& op, Stream) {
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

bool supports_all(int64_t, int64_t, int64_t) { return true; }

constexpr ClusterSumsVariant kCountingSort{
    .name = "counting_sort",
    .device = Device::cpu,
    .idea = "counting sort of the rows by code, then the rows of each code in chunks, in order",
    .exact = true,
    .supports = supports_all,
    .scratch_bytes = [](int64_t N, int64_t K, int64_t) { return (N + K + 1) * int64_t(sizeof(int32_t)); },
    .run = run_counting_sort};
constexpr const ClusterSumsVariant* kCpuVariants[] = {&kCountingSort};

#if VQ_CUDA
constexpr ClusterSumsVariant kSorted{
    .name = "sorted",
    .device = Device::cuda,
    .idea = "sort of the rows by code, then the rows of each code in chunks, in order",
    .exact = true,
    .supports = supports_all,
    .scratch_bytes = cluster_sums_scratch_bytes_cuda,
    .run = run_cuda};
constexpr const ClusterSumsVariant* kCudaVariants[] = {&kSorted};
#endif

}  // namespace

void ClusterSumsOp::check() const {
  VQ_REQUIRE(latents.rank == 2 && sums.rank == 2 && sums[1] == latents[1] && counts.size() == sums[0],
             "cluster_sums: latents {}, sums {} and counts {} disagree", latents.shape(), sums.shape(),
             counts.shape());
  VQ_REQUIRE(codes.size() == latents[0], "cluster_sums: {} codes for latents {}", codes.size(),
             latents.shape());
  VQ_REQUIRE(variant == nullptr || variant->supports(latents[0], sums[0], latents[1]),
             "cluster_sums: variant {} does not support latents {} and sums {}", variant->name,
             latents.shape(), sums.shape());
}

int64_t cluster_sums_scratch_bytes(Device device, int64_t N, int64_t K, int64_t D) {
  int64_t bytes = 0;
  for (const ClusterSumsVariant* variant : cluster_sums_variants(device))
    if (variant->supports(N, K, D)) bytes = std::max(bytes, variant->scratch_bytes(N, K, D));
  return bytes;
}

std::span<const ClusterSumsVariant* const> cluster_sums_variants(Device device) {
#if VQ_CUDA
  if (device == Device::cuda) return kCudaVariants;
#endif
  if (device == Device::cuda) return {};
  return kCpuVariants;
}

const ClusterSumsVariant& find_cluster_sums_variant(Device device, std::string_view name) {
  std::vector<std::string_view> names;
  for (const ClusterSumsVariant* variant : cluster_sums_variants(device)) {
    if (variant->name == name) return *variant;
    names.push_back(variant->name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(
      ErrorKind::usage, fmt::format("unknown cluster_sums variant '{}'", name),
      near.empty()
          ? "`vqlab compare --op cluster_sums --list` shows all"
          : fmt::format("did you mean '{}'? `vqlab compare --op cluster_sums --list` shows all", near),
      "--variant");
}

void run_cpu(const ClusterSumsOp& op) {
  const int64_t N = op.latents[0], K = op.sums[0], D = op.sums[1];
  require_scratch("cluster_sums", op.scratch, cluster_sums_scratch_bytes(Device::cpu, N, K, D));
  const ClusterSumsVariant* chosen = op.variant;
  for (const ClusterSumsVariant* variant : cluster_sums_variants(Device::cpu))
    if (chosen == nullptr && variant->supports(N, K, D)) chosen = variant;
  VQ_REQUIRE(chosen != nullptr && chosen->device == Device::cpu, "cluster_sums: no variant of this device");
  chosen->run(op, Stream{});
}

}  // namespace vqlab
