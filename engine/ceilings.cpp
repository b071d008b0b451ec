#include "ceilings.hpp"

#include <dlfcn.h>

#include <dnnl.hpp>

#include <array>
#include <cstring>
#include <functional>

#include "kernels/core/check.hpp"
#include "kernels/core/parallel.hpp"
#include "measure.hpp"

namespace vqlab {
namespace {

constexpr int64_t kSide = 1024;
constexpr int64_t kCopyPiece = int64_t(1) << 20;

// oneDNN would start a team of OpenMP threads under each of our workers. The OpenMP runtime comes with oneDNN
// and is not linked by us, hence the look-up by name; a oneDNN without OpenMP has no such teams.
void use_one_openmp_thread() {
  using SetNumThreads = void (*)(int);
  static const auto set = reinterpret_cast<SetNumThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set) set(1);
}

}  // namespace

ProductCeiling::ProductCeiling() : a_(size_t(kSide * kSide), 0.5f), b_(a_), c_(a_) {}

void ProductCeiling::run() {
  const int64_t workers = worker_count();
  parallel_for(workers, [&](int64_t shard, int) {
    use_one_openmp_thread();
    const int64_t begin = kSide * shard / workers, rows = kSide * (shard + 1) / workers - begin;
    const dnnl::status status = dnnl::sgemm('N', 'N', rows, kSide, kSide, 1.0f, a_.data() + begin * kSide,
                                            kSide, b_.data(), kSide, 0.0f, c_.data() + begin * kSide, kSide);
    VQ_REQUIRE(status == dnnl::status::success, "oneDNN's sgemm failed with status {}", int(status));
  });
}

CopyCeiling::CopyCeiling() : from_(size_t(4 * last_level_cache_bytes()), 1), to_(from_) {}

void CopyCeiling::run() {
  parallel_ranges(int64_t(from_.size()), kCopyPiece, [&](int64_t begin, int64_t end) {
    std::memcpy(to_.data() + begin, from_.data() + begin, size_t(end - begin));
  });
}

Ceilings measure_ceilings(double seconds) {
  ProductCeiling product;
  CopyCeiling copy;
  const std::array<std::function<void()>, 2> calls = {[&] { product.run(); }, [&] { copy.run(); }};
  const std::vector<Timing> timings = measure(calls, {.seconds = seconds, .cold = false});
  return {.copy_gb_s = copy.bytes() / timings[1].median_ms * 1e-6,
          .product_tflop_s = ProductCeiling::kFlop / timings[0].median_ms * 1e-9};
}

}  // namespace vqlab
