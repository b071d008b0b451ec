// An op is a struct: its fields are the named operands, check() holds its preconditions, run_cpu(op) and
// run_cuda(op, stream) implement it, run(op, stream) checks and dispatches. Ops never allocate and own
// nothing.
#pragma once

#include "check.hpp"
#include "view.hpp"

struct CUstream_st;  // *cudaStream_t, so that no CUDA header is needed here

namespace vqlab {

enum class Device { cpu, cuda };

// Where and in which order an op runs. On the CPU the handle is null and an op is done when run() returns.
struct Stream {
  Device device = Device::cpu;
  CUstream_st* handle = nullptr;
};

// VQ_CUDA_OPS will be defined once every op has its kernel: then a missing run_cuda is a link error with its
// name.
template <class Op>
void run(const Op& op, Stream stream) {
  op.check();
  if (stream.device == Device::cpu) return run_cpu(op);
#if VQ_CUDA_OPS
  run_cuda(op, stream);
#else
  throw Error(ErrorKind::device, "this vqlab has no CUDA implementation of its ops", "use --device cpu");
#endif
}

}  // namespace vqlab
