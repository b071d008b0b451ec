#include "conformance.hpp"

#include "kernels/core/hopper.cuh"

namespace vqlab::testing {

// ---- copies of a thread: 32 threads, in (128), out (128) ----

__device__ inline void copy_once(uint32_t* out, const uint32_t* in, unsigned place, bool valid) {
  VQ_SHARED(uint4, to, [32]);
  ptx::copy_16_async(&to[place], in + 4 * threadIdx.x, valid);
  ptx::copies_commit();
  ptx::copies_wait<0>();
  __syncthreads();  // all copies are done before their words are read
  for (unsigned i = 0; i < 4; ++i)
    out[32 * i + threadIdx.x] = reinterpret_cast<uint32_t*>(to)[32 * i + threadIdx.x];
}
__global__ void conformance_copy(uint32_t* out, const uint32_t* in) {
  copy_once(out, in, 31 - threadIdx.x, true);
}
__global__ void conformance_copy_zeros(uint32_t* out, const uint32_t* in) {
  copy_once(out, in, threadIdx.x, threadIdx.x % 3 != 1);
}

// Three groups; the first two are read while the third may be on its way.
__global__ void conformance_copy_groups(uint32_t* out, const uint32_t* in) {
  VQ_SHARED(uint4, to, [3][32]);
  for (int group = 0; group < 3; ++group) {
    ptx::copy_16_async(&to[group][threadIdx.x], in + 128 * group + 4 * threadIdx.x, true);
    ptx::copies_commit();
  }
  ptx::copies_wait<1>();
  for (int group = 0; group < 2; ++group) out[32 * group + threadIdx.x] = to[group][threadIdx.x].y;
  ptx::copies_wait<0>();
  out[64 + threadIdx.x] = to[2][threadIdx.x].z;
}

// ---- products of a warp: 32 threads ----

// in (4 matrices of 8 rows of 16 bytes), out (4 registers of each lane). The rows are handed over in another
// order.
__global__ void conformance_load_matrices(uint32_t* out, const uint32_t* in) {
  VQ_SHARED(uint4, rows, [32]);
  rows[threadIdx.x] = reinterpret_cast<const uint4*>(in)[threadIdx.x];
  __syncthreads();  // all rows are stored before they are loaded
  uint32_t r[4];
  ptx::load_matrices(r, &rows[threadIdx.x ^ 5]);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = r[i];
}

// in (4 registers of A, 2 of B, 4 of D for each lane), out (4 registers of D).
#define VQ_CONFORMANCE_MMA(name)                                                  \
  __global__ void conformance_##name(uint32_t* out, const uint32_t* in) {         \
    const uint32_t* mine = in + 10 * threadIdx.x;                                 \
    float d[4];                                                                   \
    for (int i = 0; i < 4; ++i) d[i] = float(int(mine[6 + i] % 8));               \
    ptx::name(d, {mine[0], mine[1], mine[2], mine[3]}, {mine[4], mine[5]});       \
    ptx::name(d, {mine[3], mine[1], mine[2], mine[0]}, {mine[5], mine[4]});       \
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = __float_as_uint(d[i]); \
  }
VQ_CONFORMANCE_MMA(mma_f16)
VQ_CONFORMANCE_MMA(mma_bf16)
VQ_CONFORMANCE_MMA(mma_tf32)
#undef VQ_CONFORMANCE_MMA

// ---- barriers ----

// Two warps pass words to and fro: in (32 * 6), out (32 * 6).
__global__ void conformance_barrier_phases(uint32_t* out, const uint32_t* in) {
#if defined(VQ_HOPPER)
  VQ_SHARED(hopper::MBarrier, barriers, [2]);
  VQ_SHARED(uint32_t, words, [32]);
  if (threadIdx.x == 0) {
    hopper::init_barrier(&barriers[0], 32);
    hopper::init_barrier(&barriers[1], 32);
    hopper::fence_barrier_init();
  }
  __syncthreads();  // the barriers are there before anybody uses them
  const unsigned lane = threadIdx.x % 32;
  for (uint32_t round = 0; round < 6; ++round) {
    if (threadIdx.x < 32) {
      hopper::wait(&barriers[1], (round & 1) ^ 1);
      words[lane] = in[32 * round + lane];
      hopper::arrive(&barriers[0]);
    } else {
      hopper::wait(&barriers[0], round & 1);
      out[32 * round + lane] = words[31 - lane] + round;
      hopper::arrive(&barriers[1]);
    }
  }
#endif
}

// A phase of one arrival that brings bytes and one that does not: out (2 tiles of 8 rows of 32 words).
__global__ void conformance_expect(uint32_t* out, const __grid_constant__ TensorMap map) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  VQ_SHARED(hopper::MBarrier, barrier, [1]);
  if (threadIdx.x == 0) {
    hopper::init_barrier(barrier, 2);
    hopper::fence_barrier_init();
  }
  __syncthreads();  // the barrier is there before anybody uses it
  if (threadIdx.x == 0) {
    hopper::arrive_and_expect(barrier, 2 * 1024);
    hopper::load_tile_async(memory, map, barrier, 0, 0);
    hopper::load_tile_async(memory + 1024, map, barrier, 8, 0);
  }
  if (threadIdx.x == 17) hopper::arrive(barrier);
  hopper::wait(barrier, 0);
  for (unsigned i = threadIdx.x; i < 512; i += 32) out[i] = reinterpret_cast<uint32_t*>(memory)[i];
#endif
}

// ---- bulk copies: 32 threads, a box of 16 rows, out (16 * 32 words as they lie in the tile) ----

#define VQ_CONFORMANCE_TILE(name, row, column)                                               \
  __global__ void conformance_##name(uint32_t* out, const __grid_constant__ TensorMap map) { \
    load_one_tile(out, map, row, column);                                                    \
  }
__device__ inline void load_one_tile(uint32_t* out, const TensorMap& map, int row, int column) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  VQ_SHARED(hopper::MBarrier, barrier, [1]);
  if (threadIdx.x == 0) {
    hopper::init_barrier(barrier, 1);
    hopper::fence_barrier_init();
    hopper::arrive_and_expect(barrier, 16 * 128);
    hopper::load_tile_async(memory, map, barrier, row, column);
  }
  __syncthreads();  // the barrier is there before the others wait on it
  hopper::wait(barrier, 0);
  for (unsigned i = threadIdx.x; i < 16 * 32; i += 32) out[i] = reinterpret_cast<uint32_t*>(memory)[i];
#endif
}
VQ_CONFORMANCE_TILE(tile_inside, 5, 0)
VQ_CONFORMANCE_TILE(tile_column, 0, 64)
VQ_CONFORMANCE_TILE(tile_edge, 12, 72)
VQ_CONFORMANCE_TILE(tile_before, -3, -16)
VQ_CONFORMANCE_TILE(tile_outside, 64, 0)
#undef VQ_CONFORMANCE_TILE

// ---- products of a warpgroup: 128 threads, in (A 64 rows, B 128 rows, of 32 words), out (64 of each thread)
// ----

#if defined(VQ_HOPPER)
// Stores the tiles as they are to lie; returns A, B is behind it.
__device__ inline unsigned char* store_tiles(unsigned char* memory, const uint32_t* in) {
  for (unsigned i = threadIdx.x; i < (64 + 128) * 32; i += blockDim.x)
    reinterpret_cast<uint32_t*>(memory)[i] = in[i];
  hopper::fence_async_proxy();
  __syncthreads();  // both tiles are stored before they are multiplied
  return memory;
}
__device__ inline void store_result(uint32_t* out, const hopper::Accumulators& d) {
  for (int i = 0; i < 64; ++i) out[64 * threadIdx.x + i] = __float_as_uint(d[i]);
}
#endif

#define VQ_CONFORMANCE_PRODUCT(name, bytes)                                                      \
  __global__ void __launch_bounds__(128) conformance_##name(uint32_t* out, const uint32_t* in) { \
    multiply_once(out, in, bytes);                                                               \
  }
__device__ inline void multiply_once(uint32_t* out, const uint32_t* in, int bytes) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  const unsigned char* tiles = store_tiles(memory, in);
  hopper::Accumulators d;
  hopper::fence_products(d);
  hopper::multiply_async(d, hopper::advance(hopper::operand(tiles), bytes),
                         hopper::advance(hopper::operand(tiles + 64 * 128), bytes), false);
  hopper::products_commit();
  hopper::products_wait<0>(d);
  store_result(out, d);
#endif
}
VQ_CONFORMANCE_PRODUCT(product, 0)
VQ_CONFORMANCE_PRODUCT(product_32, 32)
VQ_CONFORMANCE_PRODUCT(product_64, 64)
VQ_CONFORMANCE_PRODUCT(product_96, 96)
#undef VQ_CONFORMANCE_PRODUCT

// All 64 dimensions, added to what the accumulators hold.
__global__ void __launch_bounds__(128) conformance_accumulate(uint32_t* out, const uint32_t* in) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  const unsigned char* tiles = store_tiles(memory, in);
  const hopper::Operand a = hopper::operand(tiles), b = hopper::operand(tiles + 64 * 128);
  hopper::Accumulators d;
  for (int i = 0; i < 64; ++i) d[i] = float(int(threadIdx.x) - i);
  hopper::fence_products(d);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    hopper::multiply_async(d, hopper::advance(a, 32 * step), hopper::advance(b, 32 * step), true);
  hopper::products_commit();
  hopper::products_wait<0>(d);
  store_result(out, d);
#endif
}

// Two groups in flight, the first of which is waited for first: out (128 of each thread).
__global__ void __launch_bounds__(128) conformance_two_groups(uint32_t* out, const uint32_t* in) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  const unsigned char* tiles = store_tiles(memory, in);
  const hopper::Operand a = hopper::operand(tiles), b = hopper::operand(tiles + 64 * 128);
  hopper::Accumulators first, second;
  hopper::fence_products(first);
  hopper::fence_products(second);
  hopper::multiply_async(first, a, b, false);
  hopper::products_commit();
  hopper::multiply_async(second, hopper::advance(a, 32), hopper::advance(b, 64), false);
  hopper::products_commit();
  hopper::products_wait<1>(first);
  store_result(out, first);
  hopper::products_wait<0>(second);
  store_result(out + 64 * 128, second);
#endif
}

static_assert(hopper::registers_fit(384, {40}, {232, 232}));

// Registers change hands while words go through: 384 threads, in (384), out (384).
__global__ void __launch_bounds__(384, 1) conformance_registers(uint32_t* out, const uint32_t* in) {
#if defined(VQ_HOPPER)
  const uint32_t word = in[threadIdx.x];
  if (threadIdx.x < 128)
    hopper::release_registers<40>();
  else
    hopper::take_registers<232>();
  out[threadIdx.x] = word + threadIdx.x / 128;
#endif
}

// ---- the table ----

namespace {

struct Entry {
  ConformanceCase shape;
  void (*kernel)(uint32_t*, const uint32_t*);
  void (*map_kernel)(uint32_t*, TensorMap);
};

constexpr int64_t kTileWords = (64 + 128) * 32;

#define VQ_CASE(name, threads, shared, numbers, in, out, hopper) \
  { {#name, threads, shared, Numbers::numbers, in, out, 0, 0, 0, hopper}, conformance_##name, nullptr }
#define VQ_MAP_CASE(name, out, rows, columns, box_rows)                                                  \
  {                                                                                                      \
    {#name, 32, 2048, Numbers::halves, rows * columns / 2, out, rows, columns, box_rows, true}, nullptr, \
        conformance_##name                                                                               \
  }
const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
      VQ_CASE(copy, 32, 0, words, 128, 128, false),
      VQ_CASE(copy_zeros, 32, 0, words, 128, 128, false),
      VQ_CASE(copy_groups, 32, 0, words, 384, 96, false),
      VQ_CASE(load_matrices, 32, 0, words, 128, 128, false),
      VQ_CASE(mma_f16, 32, 0, halves, 320, 128, false),
      VQ_CASE(mma_bf16, 32, 0, bf16, 320, 128, false),
      VQ_CASE(mma_tf32, 32, 0, tf32, 320, 128, false),
      VQ_CASE(barrier_phases, 64, 0, words, 192, 192, true),
      VQ_MAP_CASE(expect, 512, 24, 64, 8),
      VQ_MAP_CASE(tile_inside, 512, 24, 64, 16),
      VQ_MAP_CASE(tile_column, 512, 24, 128, 16),
      VQ_MAP_CASE(tile_edge, 512, 20, 128, 16),
      VQ_MAP_CASE(tile_before, 512, 24, 64, 16),
      VQ_MAP_CASE(tile_outside, 512, 24, 64, 16),
      VQ_CASE(product, 128, 4 * kTileWords, halves, kTileWords, 64 * 128, true),
      VQ_CASE(product_32, 128, 4 * kTileWords, halves, kTileWords, 64 * 128, true),
      VQ_CASE(product_64, 128, 4 * kTileWords, halves, kTileWords, 64 * 128, true),
      VQ_CASE(product_96, 128, 4 * kTileWords, halves, kTileWords, 64 * 128, true),
      VQ_CASE(accumulate, 128, 4 * kTileWords, halves, kTileWords, 64 * 128, true),
      VQ_CASE(two_groups, 128, 4 * kTileWords, halves, kTileWords, 128 * 128, true),
      VQ_CASE(registers, 384, 0, words, 384, 384, true),
  };
  return all;
}
#undef VQ_CASE
#undef VQ_MAP_CASE

}  // namespace

const std::vector<ConformanceCase>& conformance_cases() {
  static const std::vector<ConformanceCase> cases = [] {
    std::vector<ConformanceCase> shapes;
    for (const Entry& entry : entries()) shapes.push_back(entry.shape);
    return shapes;
  }();
  return cases;
}

bool can_run(const ConformanceCase& which) { return !which.hopper || hopper::available(); }

void run_conformance(const ConformanceCase& which, uint32_t* out, const uint32_t* in, Stream stream) {
  for (const Entry& entry : entries()) {
    if (std::string_view(entry.shape.name) != which.name) continue;
    const LaunchShape shape(1, which.threads, which.shared_bytes);
    if (entry.kernel != nullptr)
      launch(which.name, entry.kernel, shape, stream, out, in);
    else
      launch(which.name, entry.map_kernel, shape, stream, out,
             make_tensor_map(in, which.map_rows, which.map_columns, which.box_rows));
    return;
  }
  VQ_REQUIRE(false, "no conformance case {}", which.name);
}

}  // namespace vqlab::testing
