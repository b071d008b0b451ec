// Loops over elements whose memory operations take one float each, or four where alignment allows.
#pragma once

#include "cuda.hpp"

namespace vqlab {

// kWidth floats that one memory operation moves.
template <int kWidth>
struct alignas(kWidth * sizeof(float)) Floats {
  float at[kWidth];
};

// `from` and `to` are aligned to kWidth floats.
template <int kWidth>
__device__ Floats<kWidth> load_floats(const float* from) {
  return *reinterpret_cast<const Floats<kWidth>*>(from);
}

template <int kWidth>
__device__ void store_floats(float* to, const Floats<kWidth>& values) {
  *reinterpret_cast<Floats<kWidth>*>(to) = values;
}

// A number of elements in a type, for the body of a loop: [=]<int kCount>(int64_t i, Width<kCount>) { ... }
template <int kCount>
struct Width {};

// Calls body(i, Width<count>{}) for the elements [i, i + count) of this thread; count is kWidth or, for the
// last size % kWidth elements, 1. Blocks of 256 threads, any grid.
template <int kWidth, class Body>
__device__ void for_each_element(int64_t size, const Body& body) {
  constexpr int64_t kBlock = 256;
  const int64_t thread = int64_t(blockIdx.x) * kBlock + threadIdx.x, rest = size % kWidth;
  const int64_t stride = int64_t(gridDim.x) * kBlock * kWidth;
  for (int64_t i = thread * kWidth; i < size - rest; i += stride) body(i, Width<kWidth>{});
  if (thread < rest) body(size - rest + thread, Width<1>{});
}

}  // namespace vqlab
