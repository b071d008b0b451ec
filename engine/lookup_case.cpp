#include "lookup_case.hpp"

#include <algorithm>

#include "kernels/codebook/score64.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

enum Tensor : uint32_t { kLatents, kCodebook };

}  // namespace

LookupCase::LookupCase(const Runtime& runtime, const VariantShape& shape, CaseData data,
                       int64_t rows_to_check)
    : VariantCase(shape),
      runtime_(runtime),
      scratch_bytes_(lookup_scratch_bytes(runtime.device(), shape.N, shape.K, shape.D)),
      codes_(runtime, shape.N * 4, "codes"),
      first_bad_row_(runtime, 4, "first bad row"),
      scratch_(runtime, scratch_bytes_, "scratch of the lookup"),
      answers_(size_t(std::min(shape.N, rows_to_check)), -1) {
  const std::vector<float> latents = case_numbers(shape.N * shape.D, kLatents, data);
  std::vector<float> codebook = case_numbers(shape.K * shape.D, kCodebook, data);
  if (data == CaseData::hard) {
    const auto half = std::ptrdiff_t(shape.K / 2 * shape.D);
    std::copy(codebook.begin(), codebook.begin() + half, codebook.begin() + half);
  }
  latents_ = to_device(latents, runtime, "latents");
  codebook_ = to_device(codebook, runtime, "codebook");
  answer_all(latents, codebook);
}

bool LookupCase::supports(std::string_view variant) const {
  return find_lookup_variant(runtime_.device(), variant).supports(shape_.N, shape_.K, shape_.D);
}

void LookupCase::run(std::string_view variant) { run(find_lookup_variant(runtime_.device(), variant)); }

void LookupCase::run(const LookupVariant& variant) {
  const auto [N, K, D] = shape_;
  vqlab::run(LookupOp{.codes = view<int32_t>(codes_, {N}),
                      .first_bad_row = view<int32_t>(first_bad_row_, {1}),
                      .latents = view<float>(latents_, {N, D}),
                      .codebook = view<float>(codebook_, {K, D}),
                      .scratch = view<std::byte>(scratch_, {scratch_bytes_}),
                      .variant = &variant},
             runtime_.compute());
}

int64_t LookupCase::wrong() const {
  if (to_host(view<int32_t>(first_bad_row_, {1}), runtime_)[0] != -1) return rows_checked();
  const std::vector<int32_t> codes = to_host(view<int32_t>(codes_, {shape_.N}), runtime_);
  int64_t count = 0;
  for (int64_t i = 0; i < rows_checked(); ++i) count += codes[size_t(checked_row(i))] != answers_[size_t(i)];
  return count;
}

double LookupCase::largest_share() const {
  std::vector<int64_t> rows(size_t(shape_.K), 0);
  for (const int32_t answer : answers_) ++rows[size_t(answer)];
  return double(*std::max_element(rows.begin(), rows.end())) / double(rows_checked());
}

std::string LookupCase::overrun() const {
  for (const GuardedBlock* block : {&codes_, &first_bad_row_, &scratch_})
    if (!block->is_whole()) return block->name();
  return "";
}

std::vector<std::byte> LookupCase::output() const {
  return to_host(view<std::byte>(codes_, {shape_.N * 4}), runtime_);
}

int64_t LookupCase::checked_row(int64_t i) const {
  return rows_checked() == 1 ? 0 : i * (shape_.N - 1) / (rows_checked() - 1);
}

// The definition itself, without the shortcuts of the variants.
void LookupCase::answer_all(const std::vector<float>& latents, const std::vector<float>& codebook) {
  const auto [N, K, D] = shape_;
  parallel_for(rows_checked(), [&, K = K, D = D](int64_t i, int) {
    const float* latent = latents.data() + checked_row(i) * D;
    double nearest = score64(latent, codebook.data(), D);
    int32_t answer = 0;
    for (int64_t k = 1; k < K; ++k) {
      const double distance = score64(latent, codebook.data() + k * D, D);
      if (distance < nearest) nearest = distance, answer = int32_t(k);
    }
    answers_[size_t(i)] = answer;
  });
}

extern const VariantOp lookup_variant_op;
const VariantOp lookup_variant_op{
    .name = "lookup",
    .bounds_rounding = false,
    .variants =
        [](Device device) {
          std::vector<VariantInfo> infos;
          for (const LookupVariant* v : lookup_variants(device))
            infos.push_back({v->name, v->idea, v->device, v->exact, v->reproducible});
          return infos;
        },
    .flop = [](const VariantShape& s) { return 2.0 * double(s.N) * double(s.K) * double(s.D); },
    .bytes =  // latents and codebook read, codes written
    [](const VariantShape& s) {
      return 4.0 * (double(s.N) * double(s.D) + double(s.K) * double(s.D) + double(s.N));
    },
    .scratch_bytes = [](Device device,
                        const VariantShape& s) { return lookup_scratch_bytes(device, s.N, s.K, s.D); },
    .make = [](const Runtime& runtime, const VariantShape& shape, CaseData data, int64_t rows)
        -> std::unique_ptr<VariantCase> { return std::make_unique<LookupCase>(runtime, shape, data, rows); },
    .decides = "lookup"};

}  // namespace vqlab
