// Shapes that every kernel of the quantizer runs at: each pair of a value of N, K, D and the offset occurs.
#pragma once

#include <cstdint>

namespace vqlab::testing {

struct QuantizerShape {
  int64_t N, K, D;
  int64_t offset;  // of all operands from alignment, in elements
};

// Around the borders of tiles and warps; N * K * D <= 4 million.
inline constexpr QuantizerShape kQuantizerShapes[] = {
    {1, 1, 1, 1},      {1, 1, 63, 0},     {1, 3, 8, 0},     {1, 128, 65, 1},  {1, 257, 256, 1},
    {1, 513, 63, 1},   {1, 513, 256, 0},  {31, 1, 8, 1},    {31, 3, 1, 0},    {31, 128, 256, 1},
    {31, 257, 63, 0},  {31, 513, 65, 0},  {128, 1, 256, 0}, {128, 3, 63, 1},  {128, 128, 1, 0},
    {128, 257, 65, 1}, {128, 513, 8, 0},  {129, 1, 256, 1}, {129, 3, 65, 1},  {129, 128, 63, 0},
    {129, 257, 8, 1},  {129, 513, 1, 1},  {1000, 1, 63, 0}, {1000, 1, 65, 1}, {1000, 3, 256, 1},
    {1000, 128, 8, 1}, {1000, 257, 1, 0}, {1000, 513, 1, 0}};

}  // namespace vqlab::testing
