// An op is a struct: its fields are the named operands, check() holds its preconditions, run_cpu(op) and
// run_cuda(op, stream) implement it, run(op, stream) checks and dispatches. Ops never allocate and own
// nothing.
#pragma once

#include "check.hpp"
#include "view.hpp"
#include "watch.hpp"

struct CUstream_st;  // *cudaStream_t, so that no CUDA header is needed here

namespace vqlab {

enum class Device { cpu, cuda };

// Where and in which order an op runs. On the CPU the handle is null and an op is done when run() returns.
struct Stream {
  Device device = Device::cpu;
  CUstream_st* handle = nullptr;
};

// Whether this build has CUDA implementations. What they are called in is discarded by `if constexpr`
// otherwise, so that a build with CUDA that misses one fails to link with its name.
#if VQ_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

[[noreturn]] inline void throw_without_cuda() {
  throw Error(ErrorKind::device, "this vqlab was built without CUDA", "use --device cpu");
}

template <class Op>
void dispatch(const Op& op, Stream stream) {
  if (stream.device == Device::cpu) return run_cpu(op);
  if constexpr (kWithCuda)
    run_cuda(op, stream);
  else
    throw_without_cuda();
}

// Apart, so that what a profiler needs stands in nobody's way.
template <class Op>
[[gnu::cold, gnu::noinline]] void run_watched(const Op& op, Stream stream) {
  struct Told {
    Stream stream;
    ~Told() { op_watch->after(stream); }
  };
  op_watch->before(facts_of(op), stream);
  const Told told{stream};
  dispatch(op, stream);
}

template <class Op>
void run(const Op& op, Stream stream) {
  op.check();
  if (op_watch != nullptr) return run_watched(op, stream);
  dispatch(op, stream);
}

// For the backends: throws Error(failed) if an op was given less scratch than it needs.
inline void require_scratch(const char* op, const View<std::byte>& scratch, int64_t needed) {
  VQ_REQUIRE(scratch.size() >= needed, "{}: {} bytes of scratch, {} needed", op, scratch.size(), needed);
}

}  // namespace vqlab
