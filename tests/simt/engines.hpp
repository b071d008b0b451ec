// What works beside the threads of a block, as ptx_emulated.hpp and hopper_emulated.hpp start it: copies of a
// thread, copies of the tensor memory accelerator, barriers that count bytes, and products of warps and
// warpgroups on the tensor cores. A model of the protocol, written from the PTX manual: results arrive as
// late as it allows, or at a random moment before; until then their places hold NaN and nobody may read them.
#pragma once

#include <cstdint>

#include "simt.hpp"

namespace simt {

// ---- copies of a thread: cp.async ----
void start_copy(void* shared, const void* global, bool valid, Place at);
void commit_copies();
void wait_for_copies(unsigned pending);

// ---- products of a warp: ldmatrix, mma.sync ----
void load_matrices(uint32_t* r, const void* row, Place at);
enum class Element { f16, bf16, tf32 };
void multiply(Element element, float* d, const uint32_t* a, const uint32_t* b, Place at);

// ---- barriers in shared memory: mbarrier ----
void init_mbarrier(void* barrier, uint32_t arrivals, Place at);
void show_mbarriers();
void arrive(void* barrier, uint32_t expected_bytes, Place at);
void wait_for_phase(void* barrier, uint32_t parity, Place at);

// ---- bulk copies: cp.async.bulk.tensor, swizzled by 128 bytes ----
struct BoxCopy {
  unsigned char* tile;
  void* barrier;
  const unsigned char* matrix;  // of 16-bit elements
  int64_t rows, columns, row, column;
  int box_rows, box_columns;
};
void start_box_copy(const BoxCopy& copy, Place at);
// Where the byte that would lie at `address` lies in a tile swizzled by 128 bytes.
inline uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 7 & 7) << 4; }

// ---- products of a warpgroup: wgmma ----
void check_operand(const void* tile, Place at);
void fence_products(Place at);
// m64n128k16 in fp16: a (64, 16), b (128, 16), d 64 floats of each thread.
void start_product(float* d, const void* a, const void* b, bool accumulate, Place at);
void commit_products(Place at);
void wait_for_products(unsigned pending, Place at);
void change_registers(Place at);

}  // namespace simt
