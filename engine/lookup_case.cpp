#include "lookup_case.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/codebook/score64.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/random.hpp"

namespace vqlab {
namespace {

enum Tensor : uint32_t { kLatents, kCodebook };

// Box and Muller 1958.
std::vector<float> normal_numbers(int64_t count, Tensor tensor) {
  const RandomKey key{.seed = 0, .step = 0, .use = RandomUse::codebook, .tensor = tensor};
  std::vector<float> values(static_cast<size_t>(count));
  parallel_ranges(count, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto bits = random_bits(key, uint64_t(i));
      const double uniform = (double(bits.v[0]) + 1.0) * 0x1p-32;
      const double angle = double(bits.v[1]) * 0x1p-32 * 2.0 * std::numbers::pi;
      values[size_t(i)] = float(std::sqrt(-2.0 * std::log(uniform)) * std::cos(angle));
    }
  });
  return values;
}

}  // namespace

LookupCase::LookupCase(const LookupShape& shape, Data data, int64_t rows_to_check)
    : shape_(shape),
      latents_(normal_numbers(shape.N * shape.D, kLatents)),
      codebook_(normal_numbers(shape.K * shape.D, kCodebook)),
      codes_(size_t(shape.N), -1),
      answers_(size_t(std::min(shape.N, rows_to_check)), -1),
      scratch_(size_t(lookup_scratch_bytes(shape.N, shape.K, shape.D))) {
  if (data == Data::tied) {
    for (float& element : latents_) element = std::round(element);
    for (float& element : codebook_) element = std::round(element);
    const auto half = std::ptrdiff_t(shape.K / 2 * shape.D);
    std::copy(codebook_.begin(), codebook_.begin() + half, codebook_.begin() + half);
  }
  answer_all();
}

void LookupCase::run(const LookupVariant& variant) {
  const auto [N, K, D] = shape_;
  vqlab::run(LookupOp{.codes = {codes_.data(), {N}},
                      .first_bad_row = {&first_bad_row_, {1}},
                      .latents = {latents_.data(), {N, D}},
                      .codebook = {codebook_.data(), {K, D}},
                      .scratch = {scratch_.data(), {int64_t(scratch_.size())}},
                      .variant = &variant},
             Stream{});
}

int64_t LookupCase::wrong() const {
  if (first_bad_row_ != -1) return rows_checked();
  int64_t count = 0;
  for (int64_t i = 0; i < rows_checked(); ++i) count += codes_[size_t(checked_row(i))] != answers_[size_t(i)];
  return count;
}

double LookupCase::largest_share() const {
  std::vector<int64_t> rows(size_t(shape_.K), 0);
  for (const int32_t answer : answers_) ++rows[size_t(answer)];
  return double(*std::max_element(rows.begin(), rows.end())) / double(rows_checked());
}

int64_t LookupCase::checked_row(int64_t i) const {
  return rows_checked() == 1 ? 0 : i * (shape_.N - 1) / (rows_checked() - 1);
}

// The definition itself, without the shortcuts of the variants.
void LookupCase::answer_all() {
  const auto [N, K, D] = shape_;
  parallel_for(rows_checked(), [&, K = K, D = D](int64_t i, int) {
    const float* latent = latents_.data() + checked_row(i) * D;
    double nearest = score64(latent, codebook_.data(), D);
    int32_t answer = 0;
    for (int64_t k = 1; k < K; ++k) {
      const double distance = score64(latent, codebook_.data() + k * D, D);
      if (distance < nearest) nearest = distance, answer = int32_t(k);
    }
    answers_[size_t(i)] = answer;
  });
}

}  // namespace vqlab
