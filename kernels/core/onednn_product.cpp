#include "onednn_product.hpp"

#include <dlfcn.h>

#include <dnnl.hpp>

#include "check.hpp"

namespace vqlab {
namespace {

// oneDNN would start a team of OpenMP threads under each of our workers. The OpenMP runtime comes with oneDNN
// and is not linked by us, hence the look-up by name; a oneDNN without OpenMP has no such teams.
void use_one_openmp_thread() {
  using SetNumThreads = void (*)(int);
  static const auto set = reinterpret_cast<SetNumThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set) set(1);
}

}  // namespace

void onednn_product(float* c, const float* a, const float* b, int64_t rows, int64_t columns, int64_t depth,
                    RightFactor factor) {
  use_one_openmp_thread();
  const bool transposed = factor == RightFactor::transposed;
  const dnnl::status status = dnnl::sgemm('N', transposed ? 'T' : 'N', rows, columns, depth, 1.0f, a, depth,
                                          b, transposed ? depth : columns, 0.0f, c, columns);
  VQ_REQUIRE(status == dnnl::status::success, "oneDNN's sgemm failed with status {}", int(status));
}

}  // namespace vqlab
