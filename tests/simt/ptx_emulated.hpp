// The functions of kernels/core/ptx.cuh on the emulated device.
#pragma once

#include "cuda_runtime.h"
#include "engines.hpp"

namespace vqlab::ptx {

inline void copy_16_async(void* shared, const void* global, bool valid, SIMT_PLACE) {
  simt::start_copy(shared, global, valid, place);
}
inline void copies_commit() { simt::commit_copies(); }
template <int kPending>
void copies_wait() {
  simt::wait_for_copies(kPending);
}

inline void load_matrices(uint32_t (&r)[4], const void* row, SIMT_PLACE) {
  simt::load_matrices(r, row, place);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::multiply(simt::Element::f16, d, a, b, place);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::multiply(simt::Element::bf16, d, a, b, place);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_PLACE) {
  simt::multiply(simt::Element::tf32, d, a, b, place);
}

}  // namespace vqlab::ptx
