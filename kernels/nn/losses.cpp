#include "losses.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

// Calls run(from, to, counted) for the pieces of [begin, end), in memory order, in which all elements count
// or none does: a row splits into its image part and its padding.
template <class Run>
void for_each_run(const ReconstructionLossOp& op, int64_t begin, int64_t end, const Run& run) {
  const int64_t H = op.target[1], C = op.target[3], row_size = op.target[2] * C;
  while (begin < end) {
    const int64_t row = begin / row_size, row_begin = row * row_size;
    const int64_t image_end = row % H < op.height ? row_begin + op.width * C : row_begin;
    const bool counted = begin < image_end;
    const int64_t to = std::min(end, counted ? image_end : row_begin + row_size);
    run(begin, to, counted);
    begin = to;
  }
}

VQ_MULTIVERSION void error_terms(float* terms, const float* reconstruction, const float* target,
                                 int64_t count, ReconstructionKind kind) {
  if (kind == ReconstructionKind::squared) {
    for (int64_t i = 0; i < count; ++i) {
      const float difference = reconstruction[i] - target[i];
      terms[i] = difference * difference;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) terms[i] = __builtin_fabsf(reconstruction[i] - target[i]);
  }
}

// Writes gradient_scale * d|difference|^p / p: the difference itself, or its sign (0 at 0, NaN stays NaN).
VQ_MULTIVERSION void error_gradient(float* gradient, const float* reconstruction, const float* target,
                                    int64_t count, ReconstructionKind kind, float gradient_scale) {
  if (kind == ReconstructionKind::squared) {
    for (int64_t i = 0; i < count; ++i) gradient[i] = gradient_scale * (reconstruction[i] - target[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const float difference = reconstruction[i] - target[i];
      const float magnitude = difference < 0.0f ? -gradient_scale : gradient_scale;
      gradient[i] = difference == 0.0f ? 0.0f : difference != difference ? difference : magnitude;
    }
  }
}

VQ_MULTIVERSION float sum_terms(const float* terms, int64_t count) {
  return lane_sum(0, count, [=](int64_t i) { return terms[i]; });
}

// Sum of the terms of [begin, end), at most kSumBlock of them; masked ones are 0, so that the order of
// addition is the same with and without padding.
float block_sum(const ReconstructionLossOp& op, int64_t begin, int64_t end, ReconstructionKind kind) {
  float terms[kSumBlock];
  for_each_run(op, begin, end, [&](int64_t from, int64_t to, bool counted) {
    if (counted)
      error_terms(terms + (from - begin), op.reconstruction.data + from, op.target.data + from, to - from,
                  kind);
    else
      std::fill(terms + (from - begin), terms + (to - begin), 0.0f);
  });
  return sum_terms(terms, end - begin);
}

void gradient_block(const ReconstructionLossOp& op, int64_t begin, int64_t end, float gradient_scale) {
  for_each_run(op, begin, end, [&](int64_t from, int64_t to, bool counted) {
    if (counted)
      error_gradient(op.d_reconstruction.data + from, op.reconstruction.data + from, op.target.data + from,
                     to - from, op.kind, gradient_scale);
    else
      std::fill(op.d_reconstruction.data + from, op.d_reconstruction.data + to, 0.0f);
  });
}

// Blocks of kSumBlock counted from the start of the image, added in order.
float image_squared_error(const ReconstructionLossOp& op, int64_t image) {
  const int64_t size = op.target.size() / op.target[0];
  float sum = 0.0f;
  for (int64_t begin = image * size, end = begin + size; begin < end; begin += kSumBlock)
    sum += block_sum(op, begin, std::min(end, begin + kSumBlock), ReconstructionKind::squared);
  return sum;
}

}  // namespace

void ReconstructionLossOp::check() const {
  VQ_REQUIRE(target.rank == 4 && same_shape(target, reconstruction) && target.size() > 0,
             "reconstruction loss: reconstruction {} and target {} differ", reconstruction.shape(),
             target.shape());
  VQ_REQUIRE(!d_reconstruction || same_shape(target, d_reconstruction),
             "reconstruction loss: d_reconstruction {} and target {} differ", d_reconstruction.shape(),
             target.shape());
  VQ_REQUIRE(loss.size() == 1 && error.size() == 1 && squared_error.size() == target[0] &&
                 block_sums.size() >= sum_blocks(target.size() / target[3] * channels),
             "reconstruction loss: loss {}, error {}, squared_error {} or block_sums {} has the wrong size",
             loss.shape(), error.shape(), squared_error.shape(), block_sums.shape());
  VQ_REQUIRE(height >= 1 && height <= target[1] && width >= 1 && width <= target[2] && channels >= 1 &&
                 channels <= target[3],
             "reconstruction loss: image {} x {} x {} does not fit in {}", height, width, channels,
             target.shape());
  VQ_REQUIRE(scale > 0.0f, "reconstruction loss: scale {} is not positive", scale);
}

void run_cpu(const ReconstructionLossOp& op) {
  VQ_REQUIRE(op.channels == op.target[3], "reconstruction loss: target {} has padded channels",
             op.target.shape());
  const int64_t terms = op.target.size(), blocks = sum_blocks(terms);
  const float counted = float(op.target[0] * op.height * op.width * op.target[3]);
  const float gradient_scale = (op.kind == ReconstructionKind::squared ? 2.0f : 1.0f) * op.scale / counted;
  parallel_for(blocks, [&](int64_t block, int) {
    const int64_t begin = block * kSumBlock, end = std::min(terms, begin + kSumBlock);
    op.block_sums.data[block] = block_sum(op, begin, end, op.kind);
    if (op.d_reconstruction) gradient_block(op, begin, end, gradient_scale);
  });
  parallel_for(op.target[0],
               [&](int64_t image, int) { op.squared_error.data[image] = image_squared_error(op, image); });
  op.error.data[0] = finish_sum(op.block_sums.data, blocks) / counted;
  op.loss.data[0] = op.scale * op.error.data[0];
}

}  // namespace vqlab
