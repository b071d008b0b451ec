#include "fibers.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(SIMT_ASAN)
#include <pthread.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {
namespace {

#if defined(SIMT_ASAN)
constexpr size_t kStackBytes = 256 * 1024;  // red zones make frames several times as large
constexpr size_t kLastFrames = 16 * 1024;   // above them, the colour of the stack
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

char* allocate_stack() {
  void* memory = mmap(nullptr, kStackBytes + kStackGuard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kStackGuard, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory) + kStackGuard;
}

}  // namespace

#if defined(__x86_64__)

// Callee-saved registers and the two floating-point control words go onto the old stack and come from the
// new. The jump at the end, unlike ret, is predicted well: most switches go on at the same place.
asm(R"(
.text
.p2align 4
.globl simt_switch_stack
.type simt_switch_stack,@function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rdx
  jmpq *%rdx
.size simt_switch_stack,.-simt_switch_stack
)");

namespace {
// What simt_switch_stack pops. The zero above it ends backtraces, and stands where a return address would, so
// that entry() finds the stack aligned as after a call.
struct Frame {
  uint32_t mxcsr;
  uint16_t x87, unused;
  void* registers[6];
  void (*entry)();
  void* no_caller;
};

void* first_context(char* top, Fiber&, void (*entry)()) {
  Frame* frame = reinterpret_cast<Frame*>(top - sizeof(Frame));
  static_assert(sizeof(Frame) % 16 == 8);
  std::memset(frame, 0, sizeof *frame);
  asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(frame->mxcsr), "=m"(frame->x87));
  frame->entry = entry;
  return frame;
}
}  // namespace

#else

void simt_switch_stack(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

namespace {
void* first_context(char* top, Fiber& fiber, void (*entry)()) {
  auto* context = reinterpret_cast<ucontext_t*>(fiber.stack_low);
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack_low + sizeof(ucontext_t);
  context->uc_stack.ss_size = size_t(top - fiber.stack_low) - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
}  // namespace

#endif

void prepare_fiber(Fiber& fiber, void (*entry)(), unsigned colour) {
  if (fiber.stack_low == nullptr) {
    fiber.stack_low = allocate_stack();
    fiber.stack_bytes = kStackBytes;
  }
#if defined(SIMT_ASAN)
  // Of frames that never returned. All of the stack costs more than most threads.
  const size_t used = fiber.unwound ? kLastFrames : fiber.stack_bytes;
  __asan_unpoison_memory_region(fiber.stack_low + fiber.stack_bytes - used, used);
  fiber.fake_stack = nullptr;
  fiber.unwound = false;
#endif
  constexpr size_t kLine = 64;
  char* top = fiber.stack_low + fiber.stack_bytes - colour * 17 % 61 * kLine;
  fiber.context = first_context(top, fiber, entry);
}

void free_fiber(Fiber& fiber) {
  if (fiber.stack_low == nullptr) return;
  munmap(fiber.stack_low - kStackGuard, fiber.stack_bytes + kStackGuard);
  fiber = {};
}

void adopt_host_stack([[maybe_unused]] Fiber& fiber) {
#if defined(SIMT_ASAN)
  pthread_attr_t attributes;
  void* low = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
  pthread_attr_getstack(&attributes, &low, &fiber.stack_bytes);
  pthread_attr_destroy(&attributes);
  fiber.stack_low = static_cast<char*>(low);
#endif
}

void fiber_started() {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace simt
