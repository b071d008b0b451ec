// A cluster sums problem with its answers: what a variant is verified and timed on.
#pragma once

#include "kernels/codebook/cluster_sums.hpp"
#include "variant_case.hpp"

namespace vqlab {

// What is asked for: the sums alone, or the fused forward pass, which also quantizes the latents.
enum class SumsForm { alone, quantizing };

// A tenth of the latents, or another share, has the last code; of the rest, code k has a share that falls as
// 1 / (k + 1), and many of a large codebook have none. Hard: nine tenths, and always quantizing, so that a
// self-test sees both forms. A row that is checked is a code: all of them are. If quantized latents or their
// distance are wrong, so are all rows.
class ClusterSumsCase : public VariantCase {
 public:
  ClusterSumsCase(const Runtime& runtime, const VariantShape& shape, CaseData data,
                  SumsForm form = SumsForm::alone, double share_of_last = 0.1);

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
  void answer(std::vector<float> latents);
  bool quantizes_rightly() const;
  double tolerance(int32_t terms, float absolute_sum, float sum) const;

  const Runtime& runtime_;
  const CaseData data_;
  const bool quantizes_;
  int64_t scratch_bytes_;
  Block latents_, codes_, codebook_;
  GuardedBlock counts_, sums_, scratch_, quantized_, distance_;
  const ClusterSumsVariant* last_ = nullptr;  // that was run
  std::vector<int32_t> codes_of_rows_;        // (N)
  std::vector<float> codes_of_book_;          // (K, D)
  float expected_distance_ = 0.0f, largest_latent_ = 0.0f;
  std::vector<int32_t> expected_counts_;  // (K)
  std::vector<float> expected_sums_;      // (K, D)
  std::vector<float> absolute_sums_;      // (K, D), of the absolute values; only where rounding may differ
};

}  // namespace vqlab
