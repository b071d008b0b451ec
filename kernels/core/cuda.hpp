// The one spelling of launches, shared memory and error checks in device code. Kernel sources use these
// instead of <<<>>> and __shared__, so that their text can also be compiled for an emulated device.
#pragma once

#include <cuda_runtime.h>

#include <cstdlib>
#include <source_location>
#include <string>
#include <utility>

#include "launch_log.hpp"
#include "op.hpp"

// A static array in shared memory: VQ_SHARED(float, tile, [kBlockK][kBlockN]);
// The dynamic shared memory of the launch, as bytes: VQ_DYN_SHARED(16, bytes);
#if defined(VQ_SIMT)  // compiled as C++, for an emulated device: its cuda_runtime.h defines this
#define VQ_SHARED(type, name, dims)                                                                   \
  struct name##_storage {                                                                             \
    type value dims;                                                                                  \
  };                                                                                                  \
  static char name##_key;                                                                             \
  auto& name =                                                                                        \
      static_cast<name##_storage*>(                                                                   \
          ::simt::shared_static(&name##_key, sizeof(name##_storage::value), alignof(name##_storage))) \
          ->value
#define VQ_DYN_SHARED(align, name) \
  unsigned char* const name = static_cast<unsigned char*>(::simt::shared_dynamic(align))
#else
#define VQ_SHARED(type, name, dims) __shared__ type name dims
#define VQ_DYN_SHARED(align, name)   \
  extern __shared__ __align__(align) \
  unsigned char name[]
#endif

// Throws if a call of the CUDA runtime failed, with the call, the error's name and text, and the place.
#define CUDA_CHECK(call) ::vqlab::cuda_check((call), #call)

namespace vqlab {

// Throws Error unless `status` is success: `resources` when device memory is exhausted, `device` when there
// is no usable GPU, else `failed`. `what` is the call or the kernel.
inline void cuda_check(cudaError_t status, const char* what,
                       std::source_location at = std::source_location::current()) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // whoever asks next, CUB for one, is not to be told again
  ErrorKind kind = ErrorKind::failed;
  const char* hint = "set VQLAB_SYNC=1: a kernel that fails is then named";
  if (status == cudaErrorMemoryAllocation) {
    kind = ErrorKind::resources;
    hint = "use a smaller batch, or free the memory of the GPU";
  } else if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
             status == cudaErrorInvalidDevice || status == cudaErrorNoKernelImageForDevice ||
             status == cudaErrorUnsupportedPtxVersion || status == cudaErrorDevicesUnavailable ||
             status == cudaErrorSystemNotReady) {
    kind = ErrorKind::device;
    hint = "use --device cpu, or install a driver that supports this CUDA version";
  }
  throw Error(kind, fmt::format("{}: {}: {}", what, cudaGetErrorName(status), cudaGetErrorString(status)),
              hint, "", at);
}

// Of the current GPU; 0 if there is none.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess)
    return value;
  (void)cudaGetLastError();
  return 0;
}
// 90 for sm_90.
inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
         device_attribute(cudaDevAttrComputeCapabilityMinor);
}

// A function of the driver, as of a CUDA version (12000: 12.0). Throws Error(device) if it has none.
inline void* driver_function(const char* name, unsigned version) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &found);
  if (status == cudaSuccess && found == cudaDriverEntryPointSuccess) return function;
  (void)cudaGetLastError();
  throw Error(ErrorKind::device, fmt::format("the driver has no {}", name), "install a newer driver");
}

// Grid, block, dynamic shared memory in bytes and, unseen, the place of the launch. (A default argument
// cannot follow the parameter pack of launch(), so the shape carries the place.)
struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes;
  std::source_location at;
  LaunchShape(dim3 grid_size, dim3 block_size, size_t dynamic_bytes = 0,
              std::source_location place = std::source_location::current())
      : grid(grid_size), block(block_size), shared_bytes(dynamic_bytes), at(place) {}
};

// Throws if the launch of `name` failed. Under VQLAB_SYNC=1 it waits for the kernel first, so that an error
// while it ran is reported here and not by a later call.
inline void check_launch(const char* name, cudaError_t status, Stream stream, std::source_location at) {
  static const bool synchronise = [] {
    const char* value = std::getenv("VQLAB_SYNC");
    return value != nullptr && std::string(value) == "1";
  }();
  if (status == cudaSuccess && synchronise) status = cudaStreamSynchronize(stream.handle);
  cuda_check(status, name, at);
}

// For whoever keeps a LaunchLog.
inline void log_launch(const char* name, const void* kernel, size_t dynamic_bytes) {
  if (LaunchLog::current() == nullptr) return;
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) (void)cudaGetLastError();
  LaunchLog::current()->add({.name = name,
                             .registers = attributes.numRegs,
                             .shared_bytes = int64_t(attributes.sharedSizeBytes + dynamic_bytes)});
}

// Launches kernel(args...) on the stream: launch("fill", fill_kernel, {grid, block}, stream, output, size).
// Arguments are converted to the kernel's parameter types. More than 48 KiB of dynamic shared memory is
// allowed.
template <class... Parameters, class... Args>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
            Args&&... args) {
  constexpr size_t kSharedWithoutOptIn = 48 * 1024;
  if (shape.shared_bytes > kSharedWithoutOptIn)
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared_bytes)),
        name, shape.at);
  log_launch(name, reinterpret_cast<const void*>(kernel), shape.shared_bytes);
#if defined(VQ_SIMT)
  ::simt::launch(kernel, {name, nullptr, shape.grid, shape.block, shape.shared_bytes, shape.at},
                 stream.handle, std::forward<Args>(args)...);
  check_launch(name, cudaSuccess, stream, shape.at);
#else
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream.handle;
  check_launch(name, cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), stream, shape.at);
#endif
}

}  // namespace vqlab
