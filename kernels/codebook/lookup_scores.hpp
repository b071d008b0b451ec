// What the CPU lookups share: how far fp32 scores may be off, how score64 decides among codes that are too
// close for them, and the whole of a lookup whose scores are a product of matrices.
#pragma once

#include <limits>

#include "../core/parallel.hpp"
#include "lookup.hpp"

namespace vqlab::cpu_lookup {

// Upper bounds as functions of n, the fp32 sum of x^2: |x| <= X = sqrt(n * norm_scale + norm_floor); no
// partial sum of a score x.c - |c|^2 / 2 exceeds C * X + half_square; a code that scores below the best by
// more than (a2 * X + a1) * X + a0 is not the nearest.
struct ErrorBound {
  float norm_scale, norm_floor, C, half_square, a2, a1, a0;
};
ErrorBound error_bound(double largest_square, int64_t D);  // the largest |c|^2

// The nearest code so far of a row for which score64 decides.
struct Nearest {
  double distance = std::numeric_limits<double>::infinity();
  int64_t code = 0;

  // Codes compete in ascending order.
  void compete(const View<const float>& codebook, const float* latent, int64_t k);
};

// A lookup by products: for `rows` latents at a time, multiply(products, first_row, count) fills products
// (count, K) with those of latents [first_row, first_row + count) and all codes, in fp32, terms added in any
// order. It is called by all workers at the same time.
int64_t product_lookup_bytes(int64_t N, int64_t K, int64_t rows);  // of scratch
void run_product_lookup(const LookupOp& op, int64_t rows,
                        FunctionRef<void(float* products, int64_t first_row, int64_t count)> multiply);

}  // namespace vqlab::cpu_lookup
