// On the emulated device CUB is replaced by the standard library, run in stream order.
#include "kernels/core/prim.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

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
       simt::writes(values_out, count * 4), simt::writes(scratch.data, bytes)},
      [=] {
        std::memset(scratch.data, 0xFF, size_t(bytes));
        std::vector<int64_t> order(static_cast<size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        // Only these bits count, as in a radix sort.
        const auto key = [=](int64_t i) { return uint32_t(keys[i]) & ((1u << bits) - 1); };
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
        for (int64_t i = 0; i < count; ++i) {
          keys_out[i] = keys[order[size_t(i)]];
          values_out[i] = values[order[size_t(i)]];
        }
      });
}

}  // namespace vqlab
