// CUB behind prim.hpp: the only file that includes it.
// Mapping, traffic and shared memory are CUB's: one pass over keys and values for each 8 bits of the keys.
// Needs: nothing; any size and alignment to 4 bytes. Measured on an H200: 16 us for 6272 pairs of 8 bits.
#include "prim.hpp"

#include <cub/device/device_radix_sort.cuh>

#include "cuda.hpp"

namespace vqlab {
namespace {

// Without scratch CUB only sets `bytes`. Keys are not negative, so their bits sort as unsigned numbers.
void sort(void* scratch, size_t& bytes, int32_t* keys_out, int32_t* values_out, const int32_t* keys,
          const int32_t* values, int64_t count, int bits, Stream stream) {
  cuda_check(cub::DeviceRadixSort::SortPairs(scratch, bytes, reinterpret_cast<const uint32_t*>(keys),
                                             reinterpret_cast<uint32_t*>(keys_out), values, values_out,
                                             int(count), 0, bits, stream.handle),
             "cub::DeviceRadixSort::SortPairs");
}

}  // namespace

int64_t sort_pairs_scratch_bytes(int64_t count, int bits) {
  size_t bytes = 0;
  sort(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, count, bits, {});
  return int64_t(bytes);
}

void sort_pairs(int32_t* keys_out, int32_t* values_out, const int32_t* keys, const int32_t* values,
                int64_t count, int bits, const View<std::byte>& scratch, Stream stream) {
  auto bytes = size_t(scratch.size());
  sort(scratch.data, bytes, keys_out, values_out, keys, values, count, bits, stream);
  check_launch("cub::DeviceRadixSort::SortPairs", cudaSuccess, stream, std::source_location::current());
}

}  // namespace vqlab
