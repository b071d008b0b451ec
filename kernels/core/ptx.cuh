// Instructions of sm_80 that CUDA C++ has no functions for: asynchronous copies to shared memory, and matrix
// products of a warp on the tensor cores. A function is one instruction. On an emulated device its
// ptx_emulated.hpp defines them instead.
//
// Fragments (PTX ISA, "Matrix fragments for mma.m16n8k16" and ".m16n8k8"), with g = lane / 4, t = lane % 4.
// Of a product of A (16 x k, row-major) and B (k x 8, column-major), a lane holds
//   d[0..3]: D(g, 2t), D(g, 2t + 1), D(g + 8, 2t), D(g + 8, 2t + 1).
// 16-bit operands, k = 16, two to a register, the lower column (A) or row (B) in its lower half:
//   a[0..3]: A(g, 2t..), A(g + 8, 2t..), A(g, 2t + 8..), A(g + 8, 2t + 8..); b[0..1]: B(2t.., g), B(2t + 8..,
//   g).
// tf32, k = 8: a[0..3]: A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4); b[0..1]: B(t, g), B(t + 4, g).
#pragma once

#include <cstdint>

#include "cuda.hpp"

#if defined(VQ_SIMT)
#include <ptx_emulated.hpp>
#else

namespace vqlab::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return uint32_t(__cvta_generic_to_shared(shared));
}

// ---- copies ----

// Copies 16 bytes, or writes 16 zeros where `valid` is false (then `global` is not read). Both aligned to 16
// bytes. Done, for the thread that asked, after copies_wait; for others, after a barrier behind that.
__device__ __forceinline__ void copy_16_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Makes a group of the copies that this thread has asked for since the last group.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups, the latest, are still on their way.
template <int kPending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- products ----

// Loads four 8 x 8 matrices of 16-bit elements from shared memory: `row` of lane 8 i + j is row j of matrix
// i, 16 bytes, aligned to them. A lane receives in r[i] the elements 2t and 2t + 1 of row g of matrix i.
// Called by whole warps.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// D += A B, accumulated in fp32 (how it is rounded, NVIDIA does not say). Called by whole warps. The asm is
// not volatile: the result depends on the operands alone.
#define VQ_PTX_MMA(name, instruction)                                                                \
  __device__ __forceinline__ void name(float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { \
    asm(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }
VQ_PTX_MMA(mma_f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
VQ_PTX_MMA(mma_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
// Operands are fp32, whose 13 lowest bits tensor cores were seen to ignore.
VQ_PTX_MMA(mma_tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef VQ_PTX_MMA

}  // namespace vqlab::ptx

#endif
