// Stands in for the toolkit's <cuda_runtime.h> where device code is compiled as C++: its folder comes first
// on the include path. Types and the declarations of the runtime are the toolkit's own; what only a GPU has
// is here. Add what a kernel uses, no more.
#pragma once
#define VQ_SIMT 1

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "race.hpp"
#include "simt.hpp"
#include "streams.hpp"

#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#define __shared__ static_assert(false, "shared memory is declared by VQ_SHARED or VQ_DYN_SHARED");
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__

#define SIMT_PLACE simt::Place place = simt::Place::current()

// Set by the scheduler at each switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

// ---- block ----

inline void __syncthreads(SIMT_PLACE) { simt::block_barrier(0, place); }
inline int __syncthreads_count(int predicate, SIMT_PLACE) {
  return simt::block_barrier(predicate, place).count;
}
inline int __syncthreads_and(int predicate, SIMT_PLACE) { return simt::block_barrier(predicate, place).all; }
inline int __syncthreads_or(int predicate, SIMT_PLACE) { return simt::block_barrier(predicate, place).any; }
inline void __threadfence() { simt::race::fence(); }  // one OS thread: all memory is in order
inline void __threadfence_block() {}
inline void __threadfence_system() { simt::race::fence(); }
inline void __nanosleep(unsigned) { simt::yield(); }
[[noreturn]] inline void __trap(SIMT_PLACE) { simt::fail("trap", "__trap()", place); }

// ---- warp ----

namespace simt {

template <class T>
struct ShuffleSlot {
  T value;
  int source;
  T result;
};

// One instance per operation, so that different shuffles do not meet. A source outside of the mask gives 0xFF
// bytes: the value is undefined.
template <class Operation, class T>
void exchange(uint32_t present, void** arguments) {
  for (int l = 0; l < 32; ++l) {
    if ((present >> l & 1) == 0) continue;
    auto& slot = *static_cast<ShuffleSlot<T>*>(arguments[l]);
    if ((present >> slot.source & 1) != 0)
      slot.result = static_cast<ShuffleSlot<T>*>(arguments[slot.source])->value;
    else
      std::memset(static_cast<void*>(&slot.result), 0xFF, sizeof(T));
  }
}

template <class Operation, class T>
T shuffle(uint32_t mask, T value, int operand, int width, Place at) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "shuffles take 4- and 8-byte numbers");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail("bad width", std::string(Operation::kName) + ": " + std::to_string(width), at);
  const int self = int(lane()), first = self & ~(width - 1);
  int source = Operation::source(self, first, operand, width);
  if (source < first || source >= first + width) source = self;
  ShuffleSlot<T> slot{value, source, value};
  meet(Operation::kName, mask, exchange<Operation, T>, &slot, at);
  return slot.result;
}

struct ShuffleIndex {
  static constexpr const char* kName = "__shfl_sync";
  static int source(int, int first, int operand, int width) { return first | (operand & (width - 1)); }
};
struct ShuffleXor {
  static constexpr const char* kName = "__shfl_xor_sync";
  static int source(int self, int, int operand, int) { return self ^ operand; }
};
struct ShuffleDown {
  static constexpr const char* kName = "__shfl_down_sync";
  static int source(int self, int, int operand, int) { return self + operand; }
};
struct ShuffleUp {
  static constexpr const char* kName = "__shfl_up_sync";
  static int source(int self, int, int operand, int) { return self - operand; }
};

template <class T, class Result>
struct VoteSlot {
  T value;
  Result result;
};

// Operation::run(present, value_of_lane, lane) is the result for one lane.
template <class Operation, class T, class Result>
void count_votes(uint32_t present, void** arguments) {
  const auto value = [&](int l) { return static_cast<VoteSlot<T, Result>*>(arguments[l])->value; };
  for (int l = 0; l < 32; ++l)
    if ((present >> l & 1) != 0)
      static_cast<VoteSlot<T, Result>*>(arguments[l])->result = Operation::run(present, value, l);
}

template <class Operation, class Result, class T>
Result vote(const char* name, uint32_t mask, T value, Place at) {
  VoteSlot<T, Result> slot{value, Result{}};
  meet(name, mask, count_votes<Operation, T, Result>, &slot, at);
  return slot.result;
}

// The lanes whose value equals this lane's; with booleans, those that say true.
struct Match {
  static uint32_t run(uint32_t present, const auto& value, int self) {
    uint32_t equal = 0;
    for (int l = 0; l < 32; ++l)
      if ((present >> l & 1) != 0 && value(l) == value(self)) equal |= 1u << l;
    return equal;
  }
};
template <int kKind>  // 0 ballot, 1 any, 2 all: of one warp, they must not meet
struct Ballot {
  static uint32_t run(uint32_t present, const auto& value, int) {
    uint32_t said = 0;
    for (int l = 0; l < 32; ++l)
      if ((present >> l & 1) != 0 && value(l)) said |= 1u << l;
    return kKind == 0 ? said : kKind == 1 ? uint32_t(said != 0) : uint32_t(said == present);
  }
};
enum class Fold { add, min, max, bit_and, bit_or, bit_xor };
template <Fold kFold>
struct Reduce {
  static auto run(uint32_t present, const auto& value, int) {
    int l = std::countr_zero(present);
    auto result = value(l);
    while (++l < 32) {
      if ((present >> l & 1) == 0) continue;
      const auto next = value(l);
      if constexpr (kFold == Fold::add) result = decltype(result)(unsigned(result) + unsigned(next));
      if constexpr (kFold == Fold::min) result = std::min(result, next);
      if constexpr (kFold == Fold::max) result = std::max(result, next);
      if constexpr (kFold == Fold::bit_and) result &= next;
      if constexpr (kFold == Fold::bit_or) result |= next;
      if constexpr (kFold == Fold::bit_xor) result ^= next;
    }
    return result;
  }
};

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::ShuffleIndex>(mask, value, source, width, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::ShuffleXor>(mask, value, lanes, width, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::ShuffleDown>(mask, value, int(delta), width, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_PLACE) {
  return simt::shuffle<simt::ShuffleUp>(mask, value, int(delta), width, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_PLACE) {
  return simt::vote<simt::Ballot<0>, unsigned>("__ballot_sync", mask, predicate, place);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_PLACE) {
  return int(simt::vote<simt::Ballot<1>, unsigned>("__any_sync", mask, predicate, place));
}
inline int __all_sync(unsigned mask, int predicate, SIMT_PLACE) {
  return int(simt::vote<simt::Ballot<2>, unsigned>("__all_sync", mask, predicate, place));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_PLACE) {
  return simt::vote<simt::Match, unsigned>("__match_any_sync", mask, value, place);
}
// `mask` if all lanes have the same value, else 0; *same says which.
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* same, SIMT_PLACE) {
  const unsigned equal = simt::vote<simt::Match, unsigned>("__match_all_sync", mask, value, place);
  *same = equal == mask;
  return *same != 0 ? mask : 0;
}
#define SIMT_REDUCE(name, fold, T)                                                   \
  inline T name(unsigned mask, T value, SIMT_PLACE) {                                \
    return simt::vote<simt::Reduce<simt::Fold::fold>, T>(#name, mask, value, place); \
  }
SIMT_REDUCE(__reduce_add_sync, add, unsigned)
SIMT_REDUCE(__reduce_add_sync, add, int)
SIMT_REDUCE(__reduce_min_sync, min, unsigned)
SIMT_REDUCE(__reduce_min_sync, min, int)
SIMT_REDUCE(__reduce_max_sync, max, unsigned)
SIMT_REDUCE(__reduce_max_sync, max, int)
SIMT_REDUCE(__reduce_and_sync, bit_and, unsigned)
SIMT_REDUCE(__reduce_or_sync, bit_or, unsigned)
SIMT_REDUCE(__reduce_xor_sync, bit_xor, unsigned)
#undef SIMT_REDUCE
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_PLACE) {
  simt::meet("__syncwarp", mask, simt::order_lanes, nullptr, place);
}
inline unsigned __activemask() { return simt::active_mask(); }

// ---- atomics: plain operations, since only one thread runs at a time; others may run just before ----

namespace simt {

template <class T, class... Ts>
concept OneOf = (std::is_same_v<T, Ts> || ...);
template <class T>
concept AtomicInteger = OneOf<T, int, unsigned, unsigned long long>;
template <class T>
concept AtomicNumber = AtomicInteger<T> || OneOf<T, float, double>;

template <class T>
[[gnu::no_sanitize("thread")]] T exchange_atomically(T* address, auto&& next, Place place) {
  maybe_yield();
  race::touch(address, sizeof(T), race::Kind::atomic, place);
  const T before = *address;
  *address = next(before);
  return before;
}

}  // namespace simt

template <simt::AtomicNumber T>
T atomicAdd(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T before) { return T(before + value); }, place);
}
template <simt::OneOf<int, unsigned> T>
T atomicSub(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T before) { return T(before - value); }, place);
}
template <simt::AtomicInteger T>
T atomicMin(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T before) { return std::min(before, value); }, place);
}
template <simt::AtomicInteger T>
T atomicMax(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T before) { return std::max(before, value); }, place);
}
template <simt::AtomicInteger T>
T atomicAnd(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T before) { return before & value; }, place);
}
template <simt::AtomicInteger T>
T atomicOr(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T before) { return before | value; }, place);
}
template <class T>
requires(simt::AtomicInteger<T> || std::is_same_v<T, float>) T
    atomicExch(T* address, std::type_identity_t<T> value, SIMT_PLACE) {
  return simt::exchange_atomically(
      address, [=](T) { return value; }, place);
}
template <simt::AtomicInteger T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value, SIMT_PLACE) {
  const T before = simt::exchange_atomically(
      address, [=](T found) { return found == expected ? value : found; }, place);
  if (before != expected) simt::yield();  // so that a loop around it lets the others go on
  return before;
}

// ---- one thread ----

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
requires std::is_arithmetic_v<T> T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(a, b);
  else
    return b < a ? b : a;
}
template <class T>
requires std::is_arithmetic_v<T> T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(a, b);
  else
    return a < b ? b : a;
}

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }

// Correctly rounded, as in hardware; rsqrtf there is within 2 units in the last place, and differs.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }
