#include "cluster_sums_case.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/parallel.hpp"
#include "kernels/core/random.hpp"

namespace vqlab {
namespace {

enum Tensor : uint32_t { kLatents, kCodes, kCodebook };

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

}  // namespace

// Of quantized latents, too: the CPU's default variant is the definition.
ClusterSumsCase::ClusterSumsCase(const Runtime& runtime, const VariantShape& shape, CaseData data,
                                 SumsForm form, double share_of_last)
    : VariantCase(shape),
      runtime_(runtime),
      data_(data),
      quantizes_(form == SumsForm::quantizing || data == CaseData::hard),
      scratch_bytes_(cluster_sums_scratch_bytes(runtime.device(), shape.N, shape.K, shape.D)),
      counts_(runtime, shape.K * 4, "counts"),
      sums_(runtime, shape.K * shape.D * 4, "sums"),
      scratch_(runtime, scratch_bytes_, "scratch of the cluster sums"),
      quantized_(runtime, quantizes_ ? shape.N * shape.D * 4 : 4, "quantized"),
      distance_(runtime, 4, "distance"),
      codes_of_rows_(skewed_codes(shape, data == CaseData::hard ? 0.9 : share_of_last)),
      expected_counts_(size_t(shape.K)),
      expected_sums_(size_t(shape.K * shape.D)) {
  std::vector<float> latents = case_numbers(shape.N * shape.D, kLatents, data);
  latents_ = to_device(latents, runtime, "latents");
  codes_ = to_device(codes_of_rows_, runtime, "codes");
  if (quantizes_) {
    codes_of_book_ = case_numbers(shape.K * shape.D, kCodebook, data);
    codebook_ = to_device(codes_of_book_, runtime, "codebook");
  }
  answer(std::move(latents));
}

void ClusterSumsCase::answer(std::vector<float> latents) {
  const auto [N, K, D] = shape_;
  std::vector<std::byte> scratch(size_t(cluster_sums_scratch_bytes(Device::cpu, N, K, D)));
  std::vector<float> quantized(quantizes_ ? size_t(N * D) : 0);
  const auto sum = [&, N = N, K = K, D = D](std::vector<int32_t>& counts, std::vector<float>& sums,
                                            bool quantizes) {
    ClusterSumsOp op{.counts = {counts.data(), {K}},
                     .sums = {sums.data(), {K, D}},
                     .latents = {latents.data(), {N, D}},
                     .codes = {codes_of_rows_.data(), {N}},
                     .scratch = {scratch.data(), {int64_t(scratch.size())}}};
    if (quantizes) {
      op.quantized = {quantized.data(), {N, D}};
      op.distance = {&expected_distance_, {1}};
      op.codebook = {codes_of_book_.data(), {K, D}};
    }
    vqlab::run(op, Stream{});
  };
  sum(expected_counts_, expected_sums_, quantizes_);
  const auto variants = cluster_sums_variants(runtime_.device());
  const bool any_rounds = std::any_of(variants.begin(), variants.end(), [](auto* v) { return !v->exact; });
  if (data_ == CaseData::hard || !any_rounds) return;
  for (float& element : latents) {
    element = std::fabs(element);
    largest_latent_ = std::max(largest_latent_, element);
  }
  std::vector<int32_t> counts(expected_counts_.size());
  absolute_sums_.resize(expected_sums_.size());
  sum(counts, absolute_sums_, false);
}

bool ClusterSumsCase::supports(std::string_view variant) const {
  return find_cluster_sums_variant(runtime_.device(), variant).supports(shape_.N, shape_.K, shape_.D);
}

void ClusterSumsCase::run(std::string_view variant) {
  run(find_cluster_sums_variant(runtime_.device(), variant));
}

void ClusterSumsCase::run(const ClusterSumsVariant& variant) {
  const auto [N, K, D] = shape_;
  last_ = &variant;
  ClusterSumsOp op{.counts = view<int32_t>(counts_, {K}),
                   .sums = view<float>(sums_, {K, D}),
                   .latents = view<float>(latents_, {N, D}),
                   .codes = view<int32_t>(codes_, {N}),
                   .scratch = view<std::byte>(scratch_, {scratch_bytes_}),
                   .variant = &variant};
  if (quantizes_) {
    op.quantized = view<float>(quantized_, {N, D});
    op.distance = view<float>(distance_, {1});
    op.codebook = view<float>(codebook_, {K, D});
  }
  vqlab::run(op, runtime_.compute());
}

// Every order of adding n terms is off by at most (n - 1) u * sum of |terms|, u = 2^-24 (Higham 2002, section
// 4.2, to first order); the answer is one such order and the variant another. ClusterSumsOp allows a variant
// that is not exact to round each latent and the sum besides: those with the same bits in every run do.
double ClusterSumsCase::tolerance(int32_t terms, float absolute_sum, float sum) const {
  constexpr double kSecondOrder = 1.01;
  double bound = kSecondOrder * 2.0 * double(std::max(0, terms - 1)) * 0x1p-24 * double(absolute_sum);
  if (last_->reproducible)
    bound += double(terms) * 0x1p-27 * double(largest_latent_) + 0x1p-24 * std::fabs(double(sum));
  return bound;
}

// The distance: exact variants have the definition's bits; in another order it is a sum of as many positive
// terms. A term has 3 roundings; its path through chunks, codes and lanes, or through lanes and blocks, at
// most those counted here.
bool ClusterSumsCase::quantizes_rightly() const {
  const auto [N, K, D] = shape_;
  const std::vector<float> quantized = to_host(view<float>(quantized_, {N, D}), runtime_);
  for (int64_t n = 0; n < N; ++n)
    if (std::memcmp(&quantized[size_t(n * D)], &codes_of_book_[size_t(codes_of_rows_[size_t(n)] * D)],
                    size_t(D) * sizeof(float)) != 0)
      return false;
  const float distance = to_host(view<float>(distance_, {1}), runtime_)[0];
  if (last_->exact) return std::memcmp(&distance, &expected_distance_, sizeof distance) == 0;
  const double roundings = 3.0 + 128.0 + 5.0 + double(N) / 128.0 + double(K * D) / 256.0 + 20.0;
  const double bound = 2.0 * 1.01 * roundings * 0x1p-24 * double(expected_distance_);
  return std::fabs(double(distance) - double(expected_distance_)) <= bound;
}

int64_t ClusterSumsCase::wrong() const {
  const auto [N, K, D] = shape_;
  if (quantizes_ && !quantizes_rightly()) return rows_checked();
  const std::vector<int32_t> counts = to_host(view<int32_t>(counts_, {K}), runtime_);
  const std::vector<float> sums = to_host(view<float>(sums_, {K, D}), runtime_);
  int64_t wrong_codes = 0;
  for (int64_t k = 0; k < K; ++k) {
    const int32_t rows = expected_counts_[size_t(k)];
    bool right = counts[size_t(k)] == rows;
    const size_t first = size_t(k * D), end = size_t((k + 1) * D);
    if (last_->exact || absolute_sums_.empty())  // +0 and -0 are different answers
      right = right && std::memcmp(&sums[first], &expected_sums_[first], (end - first) * sizeof(float)) == 0;
    else
      for (size_t i = first; i < end; ++i)
        right = right && std::fabs(double(sums[i]) - double(expected_sums_[i])) <=
                             tolerance(rows, absolute_sums_[i], expected_sums_[i]);
    wrong_codes += !right;
  }
  return wrong_codes;
}

double ClusterSumsCase::largest_share() const {
  return double(*std::max_element(expected_counts_.begin(), expected_counts_.end())) / double(shape_.N);
}

std::string ClusterSumsCase::overrun() const {
  for (const GuardedBlock* block : {&counts_, &sums_, &scratch_, &quantized_, &distance_})
    if (!block->is_whole()) return block->name();
  return "";
}

std::vector<std::byte> ClusterSumsCase::output() const {
  std::vector<std::byte> bytes = to_host(view<std::byte>(sums_, {shape_.K * shape_.D * 4}), runtime_);
  const std::vector<std::byte> counts = to_host(view<std::byte>(counts_, {shape_.K * 4}), runtime_);
  bytes.insert(bytes.end(), counts.begin(), counts.end());
  if (!quantizes_) return bytes;
  const std::vector<std::byte> distance = to_host(view<std::byte>(distance_, {4}), runtime_);
  bytes.insert(bytes.end(), distance.begin(), distance.end());
  return bytes;
}

namespace {

std::vector<VariantInfo> variants_of(Device device) {
  std::vector<VariantInfo> infos;
  for (const ClusterSumsVariant* v : cluster_sums_variants(device))
    infos.push_back({v->name, v->idea, v->device, v->exact, v->reproducible});
  return infos;
}

double additions(const VariantShape& s) { return double(s.N) * double(s.D); }

// Latents and codes read, sums and counts written.
double bytes_of_sums(const VariantShape& s) {
  return 4.0 * (double(s.N) * double(s.D) + double(s.N) + double(s.K) * double(s.D) + double(s.K));
}

int64_t scratch_of(Device device, const VariantShape& s) {
  return cluster_sums_scratch_bytes(device, s.N, s.K, s.D);
}

}  // namespace

extern const VariantOp cluster_sums_variant_op, skewed_sums_variant_op, quantize_variant_op;
const VariantOp cluster_sums_variant_op{.name = "cluster_sums",
                                        .bounds_rounding = true,
                                        .variants = variants_of,
                                        .flop = additions,
                                        .bytes = bytes_of_sums,
                                        .scratch_bytes = scratch_of,
                                        .make = [](const Runtime& runtime, const VariantShape& shape,
                                                   CaseData data, int64_t) -> std::unique_ptr<VariantCase> {
                                          return std::make_unique<ClusterSumsCase>(runtime, shape, data);
                                        }};

// Nine tenths of the latents have one code; a little less, not to be taken for data that proves little.
const VariantOp skewed_sums_variant_op{.name = "skewed_sums",
                                       .bounds_rounding = true,
                                       .variants = variants_of,
                                       .flop = additions,
                                       .bytes = bytes_of_sums,
                                       .scratch_bytes = scratch_of,
                                       .make = [](const Runtime& runtime, const VariantShape& shape,
                                                  CaseData data, int64_t) -> std::unique_ptr<VariantCase> {
                                         return std::make_unique<ClusterSumsCase>(runtime, shape, data,
                                                                                  SumsForm::alone, 0.895);
                                       }};

// The forward pass behind the lookup: quantized latents and their distance as well. The codebook is read and
// the quantized latents are written besides.
const VariantOp quantize_variant_op{
    .name = "quantize",
    .bounds_rounding = true,
    .variants = variants_of,
    .flop = [](const VariantShape& s) { return 4.0 * double(s.N) * double(s.D); },
    .bytes =
        [](const VariantShape& s) {
          return bytes_of_sums(s) + 4.0 * (double(s.N) + double(s.K)) * double(s.D);
        },
    .scratch_bytes = scratch_of,
    .make = [](const Runtime& runtime, const VariantShape& shape, CaseData data,
               int64_t) -> std::unique_ptr<VariantCase> {
      return std::make_unique<ClusterSumsCase>(runtime, shape, data, SumsForm::quantizing);
    },
    .decides = "cluster_sums"};

}  // namespace vqlab
