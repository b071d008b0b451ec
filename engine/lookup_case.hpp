// A lookup problem with its answers by score64: what a variant is verified and timed on.
#pragma once

#include "kernels/codebook/lookup.hpp"
#include "variant_case.hpp"

namespace vqlab {

// hard: every code comes twice, so that a wrong tie rule is wrong on every row (K >= 2).
class LookupCase : public VariantCase {
 public:
  // Answers take about 1 ns * rows * K * D on one worker.
  LookupCase(const Runtime& runtime, const VariantShape& shape, CaseData data, int64_t rows_to_check);

  bool supports(std::string_view variant) const override;
  void run(std::string_view variant) override;
  void run(const LookupVariant& variant);
  // All of the checked rows if the last run reported a bad latent.
  int64_t wrong() const override;
  int64_t rows_checked() const override { return int64_t(answers_.size()); }
  double largest_share() const override;  // of the checked rows
  std::string overrun() const override;
  std::vector<std::byte> output() const override;

 private:
  template <class T, class Memory>
  View<T> view(const Memory& block, std::initializer_list<int64_t> dims) const {
    return View<T>(reinterpret_cast<T*>(block.get()), dims);
  }
  int64_t checked_row(int64_t i) const;
  void answer_all(const std::vector<float>& latents, const std::vector<float>& codebook);

  const Runtime& runtime_;
  int64_t scratch_bytes_;
  Block latents_, codebook_;
  GuardedBlock codes_, first_bad_row_, scratch_;
  std::vector<int32_t> answers_;
};

}  // namespace vqlab
