// In which numbers a convolution multiplies. Tensors, sums, weights and everything outside of convolutions
// are fp32; here both operands are rounded before they are multiplied:
//   fp32  not at all
//   tf32  to 10 bits of mantissa, to the nearest, ties away from zero: PTX cvt.rna.tf32
//   bf16  to 7 bits of mantissa, to the nearest, ties to even: PTX cvt.rn.bf16
// Products of such operands are exact in fp32, and are added up in fp32 in an order of the device. In bf16
// the results of the forward and the backward-data convolution are rounded to bf16 as well, before bias and
// ReLU: as a library writes them, which takes bf16 and gives bf16. The gradient of a weight stays fp32, the
// gradient of a bias, a sum without products, has nothing to do with all this. NaN stays NaN, infinity
// infinity, what rounds beyond the largest number becomes infinity, denormal numbers are rounded like all
// others.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

#include "../core/host_device.hpp"
#include "../core/op.hpp"

namespace vqlab {

enum class Precision { fp32, tf32, bf16 };

inline constexpr const char* kPrecisionNames[] = {"fp32", "tf32", "bf16"};
inline const char* precision_name(Precision precision) { return kPrecisionNames[int(precision)]; }
// Throws Error(failed) on any other name.
Precision parse_precision(std::string_view name);

// The upper half of the bits of the nearest bf16 number. A NaN keeps its sign and gets the quiet bit, so that
// none becomes an infinity.
VQ_HOST_DEVICE inline uint16_t to_bf16(uint32_t bits) {
  const uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
  return uint16_t(((bits & 0x7FFFFFFFu) > 0x7F800000u ? bits | 0x400000u : rounded) >> 16);
}

// The bits of the nearest number of a precision.
VQ_HOST_DEVICE inline uint32_t round_bits(uint32_t bits, Precision precision) {
  if (precision == Precision::fp32) return bits;
  if (precision == Precision::bf16) return uint32_t(to_bf16(bits)) << 16;
  const uint32_t rounded = (bits + 0x1000u) & 0xFFFFE000u;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? bits | 0x400000u : rounded;
}

// rounded[i] = values[i] in that precision; the two may be the same array. On the CPU.
void round_to(Precision precision, float* rounded, const float* values, int64_t count);

}  // namespace vqlab
