#include "cluster_sums_case.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/parallel.hpp"
#include "kernels/core/random.hpp"

namespace vqlab {
namespace {

enum Tensor : uint32_t { kLatents, kCodes };

std::vector<int32_t> skewed_codes(const VariantShape& shape, double share_of_last) {
  const RandomKey key{.seed = 0, .step = 0, .use = RandomUse::codebook, .tensor = kCodes};
  std::vector<int32_t> codes(static_cast<size_t>(shape.N));
  const double codes_and_one = double(shape.K + 1);
  parallel_ranges(shape.N, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const auto bits = random_bits(key, uint64_t(n));
      const double choice = double(bits.v[0]) * 0x1p-32, place = double(bits.v[1]) * 0x1p-32;
      const auto code = choice < share_of_last ? shape.K : int64_t(std::pow(codes_and_one, place));
      codes[size_t(n)] = int32_t(std::clamp(code, int64_t(1), shape.K) - 1);
    }
  });
  return codes;
}

// Every order of adding n terms is off by at most (n - 1) u * sum of |terms|, u = 2^-24 (Higham 2002, section
// 4.2, to first order); the answer is one such order and the variant another.
double tolerance(int32_t terms, float absolute_sum) {
  constexpr double kSecondOrder = 1.01;
  return kSecondOrder * 2.0 * double(std::max(0, terms - 1)) * 0x1p-24 * double(absolute_sum);
}

// The CPU's default variant is the definition.
void sum_on_cpu(const VariantShape& shape, const std::vector<float>& latents,
                const std::vector<int32_t>& codes, std::vector<int32_t>& counts, std::vector<float>& sums) {
  const auto [N, K, D] = shape;
  std::vector<std::byte> scratch(size_t(cluster_sums_scratch_bytes(Device::cpu, N, K, D)));
  vqlab::run(ClusterSumsOp{.counts = {counts.data(), {K}},
                           .sums = {sums.data(), {K, D}},
                           .latents = {latents.data(), {N, D}},
                           .codes = {codes.data(), {N}},
                           .scratch = {scratch.data(), {int64_t(scratch.size())}}},
             Stream{});
}

}  // namespace

ClusterSumsCase::ClusterSumsCase(const Runtime& runtime, const VariantShape& shape, CaseData data)
    : VariantCase(shape),
      runtime_(runtime),
      data_(data),
      scratch_bytes_(cluster_sums_scratch_bytes(runtime.device(), shape.N, shape.K, shape.D)),
      counts_(runtime, shape.K * 4, "counts"),
      sums_(runtime, shape.K * shape.D * 4, "sums"),
      scratch_(runtime, scratch_bytes_, "scratch of the cluster sums"),
      expected_counts_(size_t(shape.K)),
      expected_sums_(size_t(shape.K * shape.D)) {
  std::vector<float> latents = case_numbers(shape.N * shape.D, kLatents, data);
  const std::vector<int32_t> codes = skewed_codes(shape, data == CaseData::hard ? 0.9 : 0.1);
  latents_ = to_device(latents, runtime, "latents");
  codes_ = to_device(codes, runtime, "codes");
  answer(codes, std::move(latents));
}

void ClusterSumsCase::answer(const std::vector<int32_t>& codes, std::vector<float> latents) {
  sum_on_cpu(shape_, latents, codes, expected_counts_, expected_sums_);
  const auto variants = cluster_sums_variants(runtime_.device());
  const bool any_rounds = std::any_of(variants.begin(), variants.end(), [](auto* v) { return !v->exact; });
  if (data_ == CaseData::hard || !any_rounds) return;
  for (float& element : latents) element = std::fabs(element);
  std::vector<int32_t> counts(expected_counts_.size());
  absolute_sums_.resize(expected_sums_.size());
  sum_on_cpu(shape_, latents, codes, counts, absolute_sums_);
}

bool ClusterSumsCase::supports(std::string_view variant) const {
  return find_cluster_sums_variant(runtime_.device(), variant).supports(shape_.N, shape_.K, shape_.D);
}

void ClusterSumsCase::run(std::string_view variant) {
  run(find_cluster_sums_variant(runtime_.device(), variant));
}

void ClusterSumsCase::run(const ClusterSumsVariant& variant) {
  const auto [N, K, D] = shape_;
  exact_ = variant.exact;
  vqlab::run(ClusterSumsOp{.counts = view<int32_t>(counts_, {K}),
                           .sums = view<float>(sums_, {K, D}),
                           .latents = view<float>(latents_, {N, D}),
                           .codes = view<int32_t>(codes_, {N}),
                           .scratch = view<std::byte>(scratch_, {scratch_bytes_}),
                           .variant = &variant},
             runtime_.compute());
}

int64_t ClusterSumsCase::wrong() const {
  const auto [N, K, D] = shape_;
  const std::vector<int32_t> counts = to_host(view<int32_t>(counts_, {K}), runtime_);
  const std::vector<float> sums = to_host(view<float>(sums_, {K, D}), runtime_);
  int64_t wrong_codes = 0;
  for (int64_t k = 0; k < K; ++k) {
    const int32_t rows = expected_counts_[size_t(k)];
    bool right = counts[size_t(k)] == rows;
    const size_t first = size_t(k * D), end = size_t((k + 1) * D);
    if (exact_ || absolute_sums_.empty())  // +0 and -0 are different answers
      right = right && std::memcmp(&sums[first], &expected_sums_[first], (end - first) * sizeof(float)) == 0;
    else
      for (size_t i = first; i < end; ++i)
        right = right &&
                std::fabs(double(sums[i]) - double(expected_sums_[i])) <= tolerance(rows, absolute_sums_[i]);
    wrong_codes += !right;
  }
  return wrong_codes;
}

double ClusterSumsCase::largest_share() const {
  return double(*std::max_element(expected_counts_.begin(), expected_counts_.end())) / double(shape_.N);
}

std::string ClusterSumsCase::overrun() const {
  for (const GuardedBlock* block : {&counts_, &sums_, &scratch_})
    if (!block->is_whole()) return block->name();
  return "";
}

std::vector<std::byte> ClusterSumsCase::output() const {
  std::vector<std::byte> bytes = to_host(view<std::byte>(sums_, {shape_.K * shape_.D * 4}), runtime_);
  const std::vector<std::byte> counts = to_host(view<std::byte>(counts_, {shape_.K * 4}), runtime_);
  bytes.insert(bytes.end(), counts.begin(), counts.end());
  return bytes;
}

extern const VariantOp cluster_sums_variant_op;
const VariantOp cluster_sums_variant_op{
    .name = "cluster_sums",
    .bounds_rounding = true,
    .variants =
        [](Device device) {
          std::vector<VariantInfo> infos;
          for (const ClusterSumsVariant* v : cluster_sums_variants(device))
            infos.push_back({v->name, v->idea, v->device, v->exact});
          return infos;
        },
    .flop = [](const VariantShape& s) { return double(s.N) * double(s.D); },
    .bytes =  // latents and codes read, sums and counts written
    [](const VariantShape& s) {
      return 4.0 * (double(s.N) * double(s.D) + double(s.N) + double(s.K) * double(s.D) + double(s.K));
    },
    .scratch_bytes = [](Device device,
                        const VariantShape& s) { return cluster_sums_scratch_bytes(device, s.N, s.K, s.D); },
    .make = [](const Runtime& runtime, const VariantShape& shape, CaseData data, int64_t)
        -> std::unique_ptr<VariantCase> { return std::make_unique<ClusterSumsCase>(runtime, shape, data); }};

}  // namespace vqlab
