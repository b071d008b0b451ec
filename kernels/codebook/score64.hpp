// The definition of the nearest code, shared by every device, variant and recheck.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/host_device.hpp"

namespace vqlab {

// Squared distance of a latent and a code, sum_d (x_d - c_d)^2 in double, d ascending, each operation rounded
// (add_square): the same bits everywhere. The code of a latent is the smallest k that attains the minimum.
VQ_HOST_DEVICE inline double score64(const float* latent, const float* code, int64_t D) {
  double sum = 0.0;
  for (int64_t d = 0; d < D; ++d) sum = add_square(sum, double(latent[d]) - double(code[d]));
  return sum;
}

// score64 where it is below `limit`, else some value that is not: partial sums never fall, so the sum can
// stop.
VQ_HOST_DEVICE inline double score64_below(const float* latent, const float* code, int64_t D, double limit) {
  double sum = 0.0;
  for (int64_t d = 0; d < D && !(sum >= limit); ++d)
    sum = add_square(sum, double(latent[d]) - double(code[d]));
  return sum;
}

// A latent that is not finite has no nearest code.
VQ_HOST_DEVICE inline bool is_finite_row(const float* latent, int64_t D) {
  bool finite = true;
  for (int64_t d = 0; d < D; ++d) finite &= std::isfinite(latent[d]);
  return finite;
}

}  // namespace vqlab
