// Tiny kernels, each of which shows what one function of ptx.cuh or hopper.cuh does, on numbers so small that
// every sum is exact. They run on the emulated device, on a GPU, and as PTX in an interpreter (tests/ptx),
// and must give the same bits.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/op.hpp"
#include "kernels/core/tensor_map.hpp"

namespace vqlab::testing {

enum class Numbers { words, halves, bf16, tf32 };  // of the input: 0, 1, 2, ...; or small integers as these

// A kernel <name>(out, in), or <name>(out, map) where `map_rows` is not 0: of a matrix (map_rows,
// map_columns) of halves, in boxes of `box_rows`, whose elements are the input.
struct ConformanceCase {
  const char* name;
  unsigned threads;
  unsigned shared_bytes;  // dynamic
  Numbers numbers;
  int64_t in_words, out_words;  // of 4 bytes
  int64_t map_rows, map_columns;
  int box_rows;
  bool hopper;  // sm_90a only
};

const std::vector<ConformanceCase>& conformance_cases();
bool can_run(const ConformanceCase& which);  // on this GPU, in this build

// Launches the kernel of a case; out (out_words), in (in_words), on the device.
void run_conformance(const ConformanceCase& which, uint32_t* out, const uint32_t* in, Stream stream);

}  // namespace vqlab::testing
