#include <limits>

#include "../../core/parallel.hpp"
#include "../lookup.hpp"
#include "../score64.hpp"

namespace vqlab {
namespace {

constexpr int64_t kRowsPerPiece = 8;

int32_t nearest_code(const LookupOp& op, const float* latent) {
  const int64_t K = op.codebook[0], D = op.codebook[1];
  if (!is_finite_row(latent, D)) return 0;
  double nearest = std::numeric_limits<double>::infinity();
  int32_t code = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double distance = score64_below(latent, op.codebook.data + k * D, D, nearest);
    if (distance < nearest) nearest = distance, code = int32_t(k);
  }
  return code;
}

void run(const LookupOp& op, Stream) {
  const int64_t N = op.latents[0], D = op.latents[1];
  parallel_ranges(N, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) op.codes.data[n] = nearest_code(op, op.latents.data + n * D);
  });
  int64_t n = 0;
  while (n < N && is_finite_row(op.latents.data + n * D, D)) ++n;
  op.first_bad_row.data[0] = n < N ? int32_t(n) : -1;
}

}  // namespace

extern const LookupVariant lookup_oracle;
const LookupVariant lookup_oracle = {
    .name = "oracle",
    .device = Device::cpu,
    .idea = "score64 of every pair: the definition of the nearest code, and nothing else",
    .exact = true,
    .supports = [](int64_t, int64_t, int64_t) { return true; },
    .scratch_bytes = [](int64_t, int64_t, int64_t) { return int64_t(0); },
    .run = run,
};

}  // namespace vqlab
