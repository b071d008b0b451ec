// VQ_HOST_DEVICE: a function that kernels call too; and what must have the same bits on both sides.
#pragma once

#if defined(__CUDACC__)
#define VQ_HOST_DEVICE __host__ __device__
#else
#define VQ_HOST_DEVICE
#endif

namespace vqlab {

// sum + x * x, product and sum both rounded: never contracted to a fused operation, whatever the flags (on
// the host -ffp-contract=off sees to it).
VQ_HOST_DEVICE inline double add_square(double sum, double x) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(sum, __dmul_rn(x, x));
#else
  return sum + x * x;
#endif
}

}  // namespace vqlab
