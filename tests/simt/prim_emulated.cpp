// On the emulated device CUB is replaced by Thrust's backend for plain C++, run in stream order.
#define THRUST_DEVICE_SYSTEM THRUST_DEVICE_SYSTEM_CPP
#include <thrust/copy.h>
#include <thrust/execution_policy.h>
#include <thrust/sort.h>

#include <cstring>

#include "kernels/core/prim.hpp"

#include "streams.hpp"

namespace vqlab {

// No more than a number that is easily got wrong.
int64_t sort_pairs_scratch_bytes(int64_t count, int bits) { return 2 * count + 2 * bits + 1; }

void sort_pairs(int32_t* keys_out, int32_t* values_out, const int32_t* keys, const int32_t* values,
                int64_t count, int bits, const View<std::byte>& scratch, Stream stream) {
  const int64_t bytes = sort_pairs_scratch_bytes(count, bits);
  require_scratch("sort_pairs", scratch, bytes);
  VQ_REQUIRE(count >= 1 && count < int64_t(1) << 31 && bits >= 1 && bits <= 31,
             "sort_pairs: {} keys of {} bits", count, bits);
  simt::enqueue_library(
      stream.handle, "sort_pairs",
      {simt::reads(keys, count * 4), simt::reads(values, count * 4), simt::writes(keys_out, count * 4),
       simt::writes(values_out, count * 4), simt::scratch(scratch.data, bytes)},
      [=] {
        std::memset(scratch.data, 0xFF, size_t(bytes));
        thrust::copy(thrust::host, keys, keys + count, keys_out);
        thrust::copy(thrust::host, values, values + count, values_out);
        // Only these bits count, as in a radix sort.
        const uint32_t mask = (1u << bits) - 1;
        thrust::stable_sort_by_key(
            thrust::host, keys_out, keys_out + count, values_out,
            [=](int32_t a, int32_t b) { return (uint32_t(a) & mask) < (uint32_t(b) & mask); });
      });
}

}  // namespace vqlab
