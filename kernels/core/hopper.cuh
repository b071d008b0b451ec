// Instructions of sm_90a: barriers that count bytes, copies by the tensor memory accelerator (TMA), products
// of a warpgroup (wgmma), and the registers of a warpgroup. A function is one instruction, or a loop of one.
// On an emulated device its hopper_emulated.hpp defines them instead.
//
// A warpgroup is four warps, threads 128 i to 128 i + 127 of the block.
#pragma once

#include <initializer_list>

#include "ptx.cuh"
#include "tensor_map.hpp"

// Whether this compilation has them: one for sm_90 without the `a` has not. A kernel that uses them traps
// there.
#if defined(VQ_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VQ_HOPPER 1
#endif

namespace vqlab::hopper {

// Whether the current GPU has them and this build, as far as it can be told before a launch.
inline bool available() {
#if defined(VQ_SM90A)
  return compute_capability() == 90;
#else
  return false;
#endif
}

// A barrier in shared memory: a phase ends when `arrivals` threads have arrived and the bytes expected have
// been copied, and the next begins. Phases have parity 0, 1, 0, ...
struct alignas(8) MBarrier {
  uint64_t bits;
};

constexpr int kSwizzle = 128;            // bytes of a row of a swizzled tile
constexpr int kTileAlignment = 8 * 128;  // after 8 rows the pattern repeats

// Whether warpgroups of a kernel with __launch_bounds__(threads, 1), which ptxas insists on, may ask for
// these numbers. A launch gives each thread an equal part of 65536 registers, in eights; what some release,
// others can take. With more they would wait for ever, and the other direction PTX does not define.
constexpr bool registers_fit(int threads, std::initializer_list<int> released,
                             std::initializer_list<int> taken) {
  const int at_launch = 65536 / threads / 8 * 8;
  int all = 0;
  for (int number : released) {
    if (number % 8 != 0 || number < 24 || number > at_launch) return false;
    all += number;
  }
  for (int number : taken) {
    if (number % 8 != 0 || number > 256 || number < at_launch) return false;
    all += number;
  }
  return int(released.size() + taken.size()) * 128 == threads && all * 128 <= at_launch * threads;
}

}  // namespace vqlab::hopper

#if defined(VQ_SIMT)
#include <hopper_emulated.hpp>
#elif defined(VQ_HOPPER)

namespace vqlab::hopper {

using ptx::shared_address;

// ---- barriers ----

// Once for each barrier, by one thread. `arrivals` counts for every phase.
__device__ __forceinline__ void init_barrier(MBarrier* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// By the thread that called init_barrier, before the block synchronises: shows the barriers to the TMA.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(MBarrier* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Arrives, and makes the phase wait for `bytes` of copies, too.
__device__ __forceinline__ void arrive_and_expect(MBarrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Waits until the phase with this parity has ended. Before phase 0 ends, parity 1 counts as ended.
__device__ __forceinline__ void wait(MBarrier* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- copies ----

// Copies the box of the map that begins at (row, column) to `tile`, swizzled, and counts its bytes on the
// barrier: all of them, also where the box reaches beyond the matrix and is filled with zeros. `map` is a
// __grid_constant__ parameter of the kernel; `tile` is aligned to kTileAlignment. By one thread.
__device__ __forceinline__ void load_tile_async(void* tile, const TensorMap& map, MBarrier* barrier, int row,
                                                int column) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(tile)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// ---- products ----

// Where an operand of a product begins: 16-bit elements in rows of kSwizzle bytes, swizzled as
// load_tile_async does, k along the row.
struct Operand {
  uint64_t descriptor;  // PTX ISA, "Matrix descriptor"
};
// A tile aligned to kTileAlignment, from its first row and column.
__device__ __forceinline__ Operand operand(const void* tile) {
  constexpr uint64_t kLeading = 1 << 16;  // ignored with a swizzle
  constexpr uint64_t kStride = uint64_t(kTileAlignment / 16) << 32;
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62;
  return {uint64_t((shared_address(tile) & 0x3ffff) / 16) | kLeading | kStride | kSwizzle128};
}
// `bytes` further along the rows, a multiple of 16 inside the first kSwizzle.
__device__ __forceinline__ Operand advance(Operand operand, int bytes) {
  return {operand.descriptor + uint64_t(bytes / 16)};
}

// The accumulators of a product m64n128: of a warpgroup's thread, with g, t as in ptx.cuh and w its warp,
// element 4 i + 2 h + j is D(16 w + g + 8 h, 8 i + 2t + j).
using Accumulators = float[64];

#define VQ_ACC_8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define VQ_ACC_64 \
  VQ_ACC_8(0), VQ_ACC_8(8), VQ_ACC_8(16), VQ_ACC_8(24), VQ_ACC_8(32), VQ_ACC_8(40), VQ_ACC_8(48), VQ_ACC_8(56)

// Before the first product of a batch, once the accumulators have been read or written by other means. This
// and the wait name the accumulators as operands: else the compiler could move their uses across.
__device__ __forceinline__ void fence_products(Accumulators& d) {
  asm volatile("wgmma.fence.sync.aligned;" : VQ_ACC_64::"memory");
}
// D = A B^T, or D += A B^T where `accumulate`; A (64 x 16), B (128 x 16) fp16, in flight until products_wait.
// Called by whole warpgroups, like all of these.
__device__ __forceinline__ void multiply_async(Accumulators& d, Operand a, Operand b, bool accumulate) {
  asm volatile(
      "{\n"
      ".reg .pred accumulate;\n"
      "setp.ne.b32 accumulate, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, accumulate, 1, 1, 0, 0;\n"
      "}"
      : VQ_ACC_64
      : "l"(a.descriptor), "l"(b.descriptor), "r"(int(accumulate)));
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the warpgroup's committed groups, the latest, are still in flight.
template <int kPending>
__device__ __forceinline__ void products_wait(Accumulators& d) {
  asm volatile("wgmma.wait_group.sync.aligned %64;" : VQ_ACC_64 : "n"(kPending) : "memory");
}
#undef VQ_ACC_64
#undef VQ_ACC_8

// Shows this thread's stores to shared memory to the TMA and to products.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- registers ----

// Changes the registers of each thread of the warpgroup: fewer than at the launch, or more, waiting until
// they are free. A kernel asserts registers_fit() for what its warpgroups ask.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace vqlab::hopper

#endif
