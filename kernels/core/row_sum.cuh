// The device half of row_sum.hpp: a warp adds to the bits of row_sum.
#pragma once

#include "cuda.hpp"
#include "row_sum.hpp"

namespace vqlab {

// Sum of term(d), d in [0, D), for every lane of the warp. Called by whole warps of a block of one dimension.
template <class Term>
__device__ double warp_row_sum(unsigned D, const Term& term) {
  double sum = 0.0;
  for (unsigned d = threadIdx.x % unsigned(kRowLanes); d < D; d += unsigned(kRowLanes)) sum += term(d);
  // Each lane adds the pair that lane 0 or a lane below it adds, in this order or the other: equal bits in
  // all.
  for (int half = int(kRowLanes) / 2; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
  return sum;
}

}  // namespace vqlab
