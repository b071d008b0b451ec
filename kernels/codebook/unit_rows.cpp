#include "unit_rows.hpp"

#include <cmath>

#include "../core/parallel.hpp"
#include "../core/row_sum.hpp"

namespace vqlab {
namespace {

constexpr int64_t kRowsPerPiece = 1024;

VQ_MULTIVERSION void scale_rows(const UnitRowsOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.input[1];
  for (int64_t n = begin; n < end; ++n) {
    const float* input = op.input.data + n * D;
    float* output = op.output.data + n * D;
    const double length =
        std::sqrt(row_sum(D, [=](int64_t d) { return double(input[d]) * double(input[d]); }));
    const double inverse = 1.0 / (length < kMinimumLength ? kMinimumLength : length);
    for (int64_t d = 0; d < D; ++d) output[d] = float(double(input[d]) * inverse);
  }
}

VQ_MULTIVERSION void backward_rows(const UnitRowsBackwardOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.input[1];
  for (int64_t n = begin; n < end; ++n) {
    const float* input = op.input.data + n * D;
    const float* d_output = op.d_output.data + n * D;
    float* d_input = op.d_input.data + n * D;
    const double length =
        std::sqrt(row_sum(D, [=](int64_t d) { return double(input[d]) * double(input[d]); }));
    const double inverse = length < kMinimumLength ? 0.0 : 1.0 / length;
    const double along =
        inverse * row_sum(D, [=](int64_t d) { return double(d_output[d]) * double(input[d]); });
    for (int64_t d = 0; d < D; ++d)
      d_input[d] = float((double(d_output[d]) - along * (double(input[d]) * inverse)) * inverse);
  }
}

}  // namespace

void UnitRowsOp::check() const {
  VQ_REQUIRE(input.rank == 2 && same_shape(input, output), "unit_rows: input {} and output {} differ",
             input.shape(), output.shape());
  VQ_REQUIRE(!poisoned || poisoned.size() == 1, "unit_rows: poisoned {} is not one element",
             poisoned.shape());
}

void UnitRowsBackwardOp::check() const {
  VQ_REQUIRE(input.rank == 2 && same_shape(input, d_input) && same_shape(input, d_output),
             "unit_rows backward: input {}, d_input {} and d_output {} differ", input.shape(),
             d_input.shape(), d_output.shape());
}

void run_cpu(const UnitRowsOp& op) {
  if (op.poisoned && op.poisoned.data[0]) return;
  parallel_ranges(op.input[0], kRowsPerPiece,
                  [&](int64_t begin, int64_t end) { scale_rows(op, begin, end); });
}

void run_cpu(const UnitRowsBackwardOp& op) {
  parallel_ranges(op.input[0], kRowsPerPiece,
                  [&](int64_t begin, int64_t end) { backward_rows(op, begin, end); });
}

}  // namespace vqlab
