// A lookup problem with its operands and its answers by score64: what a variant is verified and timed on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/codebook/lookup.hpp"

namespace vqlab {

struct LookupShape {
  int64_t N, K, D;
  double flop() const { return 2.0 * double(N) * double(K) * double(D); }
  // Compulsory traffic: latents and codebook read, codes written.
  double bytes() const { return 4.0 * (double(N) * double(D) + double(K) * double(D) + double(N)); }
};

class LookupCase {
 public:
  // gaussian: standard normal latents and codes. tied: the same rounded to integers and every code twice, so
  // that a wrong tie rule is wrong on every row (K >= 2).
  enum class Data { gaussian, tied };

  // Computes the answers of at most `rows_to_check` latents, spread evenly from the first to the last: about
  // 1 ns * rows * K * D on one worker.
  LookupCase(const LookupShape& shape, Data data, int64_t rows_to_check);

  // Runs a variant that supports the shape.
  void run(const LookupVariant& variant);

  const LookupShape& shape() const { return shape_; }
  const std::vector<int32_t>& codes() const { return codes_; }  // (N), of the last run
  int64_t rows_checked() const { return int64_t(answers_.size()); }
  // Checked rows where the last run differs from score64's choice; all of them if it reported a bad latent.
  int64_t wrong() const;
  // Share of the checked rows that have the most frequent answer: near 1, a constant function would pass.
  double largest_share() const;

 private:
  int64_t checked_row(int64_t i) const;
  void answer_all();

  LookupShape shape_;
  std::vector<float> latents_, codebook_;
  std::vector<int32_t> codes_, answers_;
  int32_t first_bad_row_ = -1;
  std::vector<std::byte> scratch_;
};

}  // namespace vqlab
