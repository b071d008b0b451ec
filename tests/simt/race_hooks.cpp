// The functions that code compiled with -fsanitize=thread calls, for the race checker instead of libtsan.
#include <cstring>

#include "race_shadow.hpp"

namespace {

using simt::race::Kind;

// Two words for most accesses: whatever is not memory of the device ends here.
inline void note(const volatile void* address, size_t bytes, Kind kind, void* return_address) {
  const void* plain = const_cast<const void*>(address);
  if (!simt::race::in_arena(plain) || bytes == 0) return;
  simt::race::access(plain, bytes, kind, simt::race::id_of(reinterpret_cast<uintptr_t>(return_address)));
}

}  // namespace

#define HERE __builtin_return_address(0)
#define ACCESSES(size)                                                                      \
  void __tsan_read##size(void* p) { note(p, size, Kind::read, HERE); }                      \
  void __tsan_write##size(void* p) { note(p, size, Kind::write, HERE); }                    \
  void __tsan_unaligned_read##size(void* p) { note(p, size, Kind::read, HERE); }            \
  void __tsan_unaligned_write##size(void* p) { note(p, size, Kind::write, HERE); }          \
  void __tsan_volatile_read##size(void* p) { note(p, size, Kind::atomic, HERE); }           \
  void __tsan_volatile_write##size(void* p) { note(p, size, Kind::atomic, HERE); }          \
  void __tsan_unaligned_volatile_read##size(void* p) { note(p, size, Kind::atomic, HERE); } \
  void __tsan_unaligned_volatile_write##size(void* p) { note(p, size, Kind::atomic, HERE); }

// Atomics of host code, which is not what the checker is about: done, and not noted.
#define ATOMICS(bits, T)                                                                                  \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {                                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) {                                             \
    return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);                                                     \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_xor(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                       \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {          \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }                                                                                                       \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {            \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { note(p, bytes, Kind::read, HERE); }
void __tsan_write_range(void* p, size_t bytes) { note(p, bytes, Kind::write, HERE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
}
