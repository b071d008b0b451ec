#include "cudnn.hpp"

#include <array>

#include "../core/check.hpp"
#include "../core/library.hpp"

namespace vqlab {
namespace {

constexpr const char* kName = "libcudnn.so.9";
constexpr size_t kOldestVersion = 91100;  // the first that plans for a device that is not there

CudnnApi load() {
  void* const library = open_library(kName);
  CudnnApi table;
#define VQ_LOAD(function) VQ_LIBRARY_FUNCTION(table, library, kName, function);
  VQ_CUDNN_FUNCTIONS(VQ_LOAD)
#undef VQ_LOAD
  const size_t version = table.cudnnGetVersion();
  if (version < kOldestVersion)
    throw Error(ErrorKind::device,
                fmt::format("cuDNN {}.{}.{} is too old, 9.11 is needed", version / 10000, version / 100 % 100,
                            version % 100),
                "install a newer cuDNN 9, or name its folder in VQLAB_CUDA_LIB_DIR", kName);
  return table;
}

}  // namespace

const CudnnApi& cudnn() {
  static const CudnnApi api = load();
  return api;
}

std::string cudnn_problem() {
  try {
    cudnn();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

void cudnn_check(cudnnStatus_t status, const std::string& call, std::source_location at) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::array<char, 1024> message{};
  cudnn().cudnnGetLastErrorString(message.data(), message.size());
  const bool memory = status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
                      status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
  throw Error(memory ? ErrorKind::resources : ErrorKind::failed,
              fmt::format("{}: {}: {}", call, cudnn().cudnnGetErrorString(status), message.data()),
              "CUDNN_LOGLEVEL_DBG=2 and CUDNN_LOGDEST_DBG=stderr make cuDNN say more", "", at);
}

}  // namespace vqlab
