#include "precision.hpp"

#include <cstring>

#include "../core/parallel.hpp"

namespace vqlab {
namespace {

// The two arrays are the same or apart, so no iteration reads what another writes.
template <Precision kPrecision>
VQ_MULTIVERSION void round_range(float* rounded, const float* values, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    rounded[i] = std::bit_cast<float>(round_bits(std::bit_cast<uint32_t>(values[i]), kPrecision));
}

}  // namespace

Precision parse_precision(std::string_view name) {
  for (const Precision precision : {Precision::fp32, Precision::tf32, Precision::bf16})
    if (name == precision_name(precision)) return precision;
  throw Error(ErrorKind::failed, fmt::format("there is no precision {}", name),
              "choose one of fp32, tf32, bf16");
}

void round_to(Precision precision, float* rounded, const float* values, int64_t count) {
  switch (precision) {
    case Precision::fp32:
      if (rounded != values) std::memcpy(rounded, values, size_t(count) * sizeof(float));
      break;
    case Precision::tf32:
      return round_range<Precision::tf32>(rounded, values, count);
    case Precision::bf16:
      return round_range<Precision::bf16>(rounded, values, count);
  }
}

}  // namespace vqlab
