#include "lookup_scores.hpp"

#include <cmath>
#include <cstring>

#include "score64.hpp"

namespace vqlab::cpu_lookup {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kLanes = 16;  // independent maxima, for the compiler to vectorise

// scores += half_norms. The largest; NaN is passed over.
VQ_MULTIVERSION float add_norms(float* scores, const float* half_norms, int64_t K) {
  float best[kLanes];
  for (float& lane : best) lane = -kInfinity;
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes)
    for (int64_t i = 0; i < kLanes; ++i) {
      scores[k + i] += half_norms[k + i];
      best[i] = best[i] < scores[k + i] ? scores[k + i] : best[i];
    }
  for (; k < K; ++k) {
    scores[k] += half_norms[k];
    best[0] = best[0] < scores[k] ? scores[k] : best[0];
  }
  return *std::max_element(best, best + kLanes);
}

// How many codes may be the nearest: of which a score that overflowed to NaN is one.
VQ_MULTIVERSION int64_t count_candidates(const float* scores, float floor, int64_t K) {
  int64_t count = 0;
  for (int64_t k = 0; k < K; ++k) count += scores[k] < floor ? 0 : 1;
  return count;
}

// Where the parts of the scratch begin, in floats from an address that is a multiple of 64 bytes.
struct Layout {
  int64_t half_norms, bad_rows, products, end;
};
Layout lay_out(int64_t N, int64_t K, int64_t rows) {
  const auto padded = [](int64_t floats) { return (floats + 15) / 16 * 16; };
  Layout at{};
  at.bad_rows = padded(K);                                    // (shards), int32
  at.products = at.bad_rows + padded((N + rows - 1) / rows);  // (workers, rows, K)
  at.end = at.products + worker_count() * padded(rows * K);
  return at;
}

// Fills half_norms (K); the largest |c|^2.
double square_codes(float* half_norms, const View<const float>& codebook) {
  const int64_t K = codebook[0], D = codebook[1];
  double largest = 0.0;
  for (int64_t k = 0; k < K; ++k) {
    double square = 0.0;
    for (int64_t d = 0; d < D; ++d)
      square += double(codebook.data[k * D + d]) * double(codebook.data[k * D + d]);
    half_norms[k] = float(-0.5 * square);
    largest = std::max(largest, square);
  }
  return largest;
}

// The code of a row, from its products; -1 if the row is not finite.
int32_t nearest_code(const LookupOp& op, int64_t row, float* scores, const float* half_norms,
                     const ErrorBound& bound) {
  const int64_t K = op.codebook[0], D = op.codebook[1];
  const float* latent = op.latents.data + row * D;
  float square = 0.0f;
  for (int64_t d = 0; d < D; ++d) square += latent[d] * latent[d];
  const float X = std::sqrt(square * bound.norm_scale + bound.norm_floor);
  const bool bounded = X * bound.C + bound.half_square < 0x1p126f;  // no score can overflow
  if (!bounded && !is_finite_row(latent, D)) return -1;
  const float best = add_norms(scores, half_norms, K);
  const float floor = bounded ? best - ((X * bound.a2 + bound.a1) * X + bound.a0) : -kInfinity;
  const auto may_be_nearest = [=](int64_t k) { return !(scores[k] < floor); };
  if (count_candidates(scores, floor, K) == 1) {
    int64_t k = 0;
    while (!may_be_nearest(k)) ++k;
    return int32_t(k);
  }
  Nearest nearest;
  for (int64_t k = 0; k < K; ++k)
    if (may_be_nearest(k)) nearest.compete(op.codebook, latent, k);
  return int32_t(nearest.code);
}

}  // namespace

// Let u = 2^-24, g = r u / (1 - r u) with r = D + 4, X >= |x|, C >= |c_k|. A score is the sum of the rounded
// -|c|^2 / 2 and D products; in whatever order, fused or not, no term is rounded more than D + 3 times.
// So a score is within e = g (X C + C^2 / 2) of its exact value (the spare u pays for rounding `floor`).
// score64 is a distance <= (X + C)^2 within a relative (D + 3) 2^-53 =: q, and distances are |x|^2 - 2 s.
// Hence score64's winner scores at least best - 2 e - q (X + C)^2, a polynomial in X. `up` pays for rounding
// the coefficients and for evaluating in fp32; `tiny` pays for results below the normal range, which are off
// by at most 2^-150 each. From D = 2^23 on g is infinite, and score64 decides everywhere.
ErrorBound error_bound(double largest_square, int64_t D) {
  constexpr double up = 1.0 + 0x1p-16, tiny = 0x1p-124;
  const double ru = double(D + 4) * 0x1p-24;
  const double g = ru < 0.5 ? ru / (1.0 - ru) : std::numeric_limits<double>::infinity();
  const double C = std::sqrt(largest_square) * up, q = double(D + 3) * 0x1p-53;
  return {.norm_scale = float((1.0 + 2.0 * g) * up),
          .norm_floor = float(tiny),
          .C = float(C * up),
          .half_square = float(0.5 * C * C * up),
          .a2 = float(q * up),
          .a1 = float(2.0 * (g + q) * C * up + tiny),
          .a0 = float((g + q) * C * C * up + tiny)};
}

// A code equal to the nearest one so far is dismissed by its bytes: codebooks full of equal codes must not
// cost a full score64 each.
void Nearest::compete(const View<const float>& codebook, const float* latent, int64_t k) {
  const int64_t D = codebook[1];
  const float* rival = codebook.data + k * D;
  if (distance < std::numeric_limits<double>::infinity() &&
      std::memcmp(rival, codebook.data + code * D, size_t(D) * sizeof(float)) == 0)
    return;
  const double rival_distance = score64_below(latent, rival, D, distance);
  if (rival_distance < distance) distance = rival_distance, code = k;
}

int64_t product_lookup_bytes(int64_t N, int64_t K, int64_t rows) {
  return lay_out(N, K, rows).end * int64_t(sizeof(float)) + 64;  // the scratch may begin anywhere
}

void run_product_lookup(const LookupOp& op, int64_t rows,
                        FunctionRef<void(float* products, int64_t first_row, int64_t count)> multiply) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1];
  const Layout at = lay_out(N, K, rows);
  const auto address = reinterpret_cast<uintptr_t>(op.scratch.data);
  auto* const base = reinterpret_cast<float*>(op.scratch.data + (64 - address % 64) % 64);
  float* const half_norms = base + at.half_norms;
  auto* const bad_rows = reinterpret_cast<int32_t*>(base + at.bad_rows);
  const ErrorBound bound = error_bound(square_codes(half_norms, op.codebook), D);

  const int64_t shards = (N + rows - 1) / rows;
  parallel_for(shards, [&](int64_t shard, int worker) {
    const int64_t first = shard * rows, count = std::min(rows, N - first);
    float* const products = base + at.products + worker * ((rows * K + 15) / 16 * 16);
    multiply(products, first, count);
    int32_t bad_row = -1;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t code = nearest_code(op, first + i, products + i * K, half_norms, bound);
      if (code < 0 && bad_row < 0) bad_row = int32_t(first + i);
      op.codes.data[first + i] = std::max(code, 0);
    }
    bad_rows[shard] = bad_row;
  });
  const int32_t* bad = std::find_if(bad_rows, bad_rows + shards, [](int32_t row) { return row >= 0; });
  op.first_bad_row.data[0] = bad == bad_rows + shards ? -1 : *bad;
}

}  // namespace vqlab::cpu_lookup
