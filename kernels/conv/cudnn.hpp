// The functions of cuDNN that we use, found at run time and typed by its own header: cudnn().cudnnCreate(&h)
// reads like the C API.
#pragma once

#include <cudnn.h>

#include <source_location>
#include <string>

#define VQ_CUDNN_FUNCTIONS(X)      \
  X(cudnnGetVersion)               \
  X(cudnnGetErrorString)           \
  X(cudnnGetLastErrorString)       \
  X(cudnnCreate)                   \
  X(cudnnSetStream)                \
  X(cudnnBackendCreateDescriptor)  \
  X(cudnnBackendDestroyDescriptor) \
  X(cudnnBackendSetAttribute)      \
  X(cudnnBackendGetAttribute)      \
  X(cudnnBackendFinalize)          \
  X(cudnnBackendExecute)

// Throws if a call of cuDNN failed: CUDNN_CHECK(cudnn().cudnnCreate(&handle)).
#define CUDNN_CHECK(call) ::vqlab::cudnn_check((call), #call)

namespace vqlab {

struct CudnnApi {
#define VQ_FIELD(function) decltype(&::function) function;
  VQ_CUDNN_FUNCTIONS(VQ_FIELD)
#undef VQ_FIELD
};

// Loads the library on first use. Throws Error(device) if it cannot be, or is older than 9.11.
const CudnnApi& cudnn();

// "" if cuDNN can be loaded and is new enough, else one line why not.
std::string cudnn_problem();

// Throws Error(failed) with the call, the status, cuDNN's last message and the place unless `status` is
// success.
void cudnn_check(cudnnStatus_t status, const std::string& call,
                 std::source_location at = std::source_location::current());

}  // namespace vqlab
