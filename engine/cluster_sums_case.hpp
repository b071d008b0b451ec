// A cluster sums problem with its answers: what a variant is verified and timed on.
#pragma once

#include "kernels/codebook/cluster_sums.hpp"
#include "variant_case.hpp"

namespace vqlab {

// A tenth of the latents (hard: nine tenths) has the last code; of the rest, code k has a share that falls as
// 1 / (k + 1), and many of a large codebook have none. A row that is checked is a code: all of them are.
class ClusterSumsCase : public VariantCase {
 public:
  ClusterSumsCase(const Runtime& runtime, const VariantShape& shape, CaseData data);

  bool supports(std::string_view variant) const override;
  void run(std::string_view variant) override;
  void run(const ClusterSumsVariant& variant);
  int64_t wrong() const override;
  int64_t rows_checked() const override { return shape_.K; }
  double largest_share() const override;
  std::string overrun() const override;
  std::vector<std::byte> output() const override;

 private:
  template <class T, class Memory>
  View<T> view(const Memory& block, std::initializer_list<int64_t> dims) const {
    return View<T>(reinterpret_cast<T*>(block.get()), dims);
  }
  void answer(const std::vector<int32_t>& codes, std::vector<float> latents);

  const Runtime& runtime_;
  const CaseData data_;
  int64_t scratch_bytes_;
  Block latents_, codes_;
  GuardedBlock counts_, sums_, scratch_;
  bool exact_ = true;                     // of the last run
  std::vector<int32_t> expected_counts_;  // (K)
  std::vector<float> expected_sums_;      // (K, D)
  std::vector<float> absolute_sums_;      // (K, D), of the absolute values; only where rounding may differ
};

}  // namespace vqlab
