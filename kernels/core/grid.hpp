// Sizes of launches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "check.hpp"

namespace vqlab {

// Blocks of a kernel whose threads step over the elements with the stride of the grid, `per_block` of them at
// a time: several waves of blocks on every GPU, larger outputs loop. size >= 1.
inline unsigned elementwise_grid(int64_t size, int64_t per_block) {
  constexpr int64_t kMaxGrid = 4096;
  return unsigned(std::min(kMaxGrid, (size + per_block - 1) / per_block));
}

// A size that a kernel counts in 32 bits: below 2^30, so that sums of three of them do not wrap. Throws
// Error(failed).
inline unsigned size_in_32_bits(const char* op, int64_t size) {
  VQ_REQUIRE(size >= 0 && size < int64_t(1) << 30, "{}: a size of {} is too large for the device", op, size);
  return unsigned(size);
}

// Whether four floats at a time can be read and written from every one of the addresses.
template <class... Pointers>
bool aligned_to_16_bytes(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace vqlab
