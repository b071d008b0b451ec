#include "straight_through.hpp"

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kRowsPerPiece = 1024;

VQ_MULTIVERSION void quantize_rows(const StraightThroughOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.latents[1];
  for (int64_t n = begin; n < end; ++n) {
    const float* code = op.codebook.data + op.codes.data[n] * D;
    float* quantized = op.quantized.data + n * D;
    for (int64_t d = 0; d < D; ++d) quantized[d] = code[d];
  }
}

VQ_MULTIVERSION float distance_block(const float* latents, const float* quantized, int64_t begin,
                                     int64_t end) {
  return lane_sum(begin, end, [=](int64_t i) {
    const float difference = latents[i] - quantized[i];
    return difference * difference;
  });
}

VQ_MULTIVERSION void backward_rows(const StraightThroughBackwardOp& op, int64_t begin, int64_t end) {
  const int64_t D = op.latents[1];
  const float scale = op.commitment_scale;
  for (int64_t n = begin; n < end; ++n) {
    const float* code = op.codebook.data + op.codes.data[n] * D;
    const float* latent = op.latents.data + n * D;
    const float* d_quantized = op.d_quantized.data + n * D;
    float* d_latent = op.d_latents.data + n * D;
    for (int64_t d = 0; d < D; ++d) d_latent[d] = d_quantized[d] + scale * (latent[d] - code[d]);
  }
}

}  // namespace

void StraightThroughOp::check() const {
  VQ_REQUIRE(latents.rank == 2 && same_shape(latents, quantized),
             "straight_through: latents {} and quantized {} differ", latents.shape(), quantized.shape());
  VQ_REQUIRE(codebook.rank == 2 && codebook[1] == latents[1],
             "straight_through: latents {} and codebook {} differ in D", latents.shape(), codebook.shape());
  VQ_REQUIRE(codes.size() == latents[0], "straight_through: {} codes for latents {}", codes.size(),
             latents.shape());
  VQ_REQUIRE(distance.size() == 1 && block_sums.size() >= sum_blocks(latents.size()),
             "straight_through: distance {} or block_sums {} has the wrong size", distance.shape(),
             block_sums.shape());
}

void StraightThroughBackwardOp::check() const {
  VQ_REQUIRE(latents.rank == 2 && same_shape(latents, d_latents) && same_shape(latents, d_quantized),
             "straight_through backward: latents {}, d_latents {} and d_quantized {} differ", latents.shape(),
             d_latents.shape(), d_quantized.shape());
  VQ_REQUIRE(codebook.rank == 2 && codebook[1] == latents[1] && codes.size() == latents[0],
             "straight_through backward: latents {}, codebook {} and {} codes disagree", latents.shape(),
             codebook.shape(), codes.size());
  VQ_REQUIRE(bool(counts) == bool(d_codebook) && bool(sums) == bool(d_codebook),
             "straight_through backward: d_codebook {}, counts {} and sums {} go together",
             d_codebook.shape(), counts.shape(), sums.shape());
  if (d_codebook) codebook_gradient().check();
}

CodebookGradientOp StraightThroughBackwardOp::codebook_gradient() const {
  return {.d_codebook = d_codebook,
          .codebook = codebook,
          .counts = counts,
          .sums = sums,
          .scale = codebook_scale};
}

void run_cpu(const StraightThroughOp& op) {
  parallel_ranges(op.latents[0], kRowsPerPiece,
                  [&](int64_t begin, int64_t end) { quantize_rows(op, begin, end); });
  const int64_t terms = op.latents.size(), blocks = sum_blocks(terms);
  parallel_for(blocks, [&](int64_t block, int) {
    op.block_sums.data[block] = distance_block(op.latents.data, op.quantized.data, block * kSumBlock,
                                               std::min(terms, (block + 1) * kSumBlock));
  });
  op.distance.data[0] = finish_sum(op.block_sums.data, blocks) / float(terms);
}

void run_cpu(const StraightThroughBackwardOp& op) {
  parallel_ranges(op.latents[0], kRowsPerPiece,
                  [&](int64_t begin, int64_t end) { backward_rows(op, begin, end); });
  if (op.d_codebook) run_cpu(op.codebook_gradient());
}

}  // namespace vqlab
