// Device-wide algorithms. On a GPU they are CUB's (prim.cu, the only file that includes it); an emulated
// device supplies its own.
#pragma once

#include <cstdint>

#include "op.hpp"

namespace vqlab {

// Bytes of scratch that sort_pairs needs for `count` pairs of keys below 2^bits. Needs a CUDA device.
int64_t sort_pairs_scratch_bytes(int64_t count, int bits);

// Sorts the pairs (key, value) by key, stably: keys_out and values_out (count) from keys and values (count).
// 0 <= key < 2^bits; count in [1, 2^31). None of the arrays may overlap.
void sort_pairs(int32_t* keys_out, int32_t* values_out, const int32_t* keys, const int32_t* values,
                int64_t count, int bits, const View<std::byte>& scratch, Stream stream);

}  // namespace vqlab
