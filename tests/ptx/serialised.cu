// What profiling/kernel_resources must refuse: accumulators are read while a product on them is in flight, so
// that ptxas adds a wait.
#include "kernels/core/hopper.cuh"

namespace vqlab {

__global__ void __launch_bounds__(128, 1) serialised_kernel(float* out /*(1)*/) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  hopper::Accumulators d;
  hopper::fence_products(d);
  hopper::multiply_async(d, hopper::operand(memory), hopper::operand(memory), false);
  hopper::products_commit();
  out[0] = d[0];
  hopper::products_wait<0>(d);
  out[0] = d[1];
#endif
}

}  // namespace vqlab
