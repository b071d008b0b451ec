// Stackful fibers, all on the OS thread that switches between them.
#pragma once

#include <cstddef>

#include "simt.hpp"

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// Below each stack no byte can be touched.
inline constexpr size_t kStackGuard = 64 * 1024;

// A stack and where it stopped. Without a stack of its own it stands for the thread that called in.
struct Fiber {
  void* context = nullptr;    // the saved stack pointer
  char* stack_low = nullptr;  // lowest usable byte
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // of AddressSanitizer
  // Whether all frames have returned but those of entry() and what it ended in.
  bool unwound = false;
};

// Gives the fiber a stack (kept for its life; the first call allocates it) and makes the next switch to it
// call entry(), which must never return. `colour` spreads the stack tops over the sets of the cache.
void prepare_fiber(Fiber& fiber, void (*entry)(), unsigned colour);
void free_fiber(Fiber& fiber);
// Fills in the bounds of the stack that runs now, which AddressSanitizer wants to know.
void adopt_host_stack(Fiber& fiber);
// To be called first by entry().
void fiber_started();

#if defined(__x86_64__)
extern "C" void simt_switch_stack(void** save, void* load);
#else
void simt_switch_stack(void** save, void* load);
#endif

// Stops `from`, which runs now, and goes on with `to`. `last`: `from` is never continued.
inline void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool last = false) {
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack_low, to.stack_bytes);
#endif
  simt_switch_stack(&from.context, to.context);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace simt
