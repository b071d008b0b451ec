#include "cublas_lt.hpp"

#include "library.hpp"

namespace vqlab {

const CublasLtApi& cublas_lt() {
  static const CublasLtApi api = [] {
    constexpr const char* kName = "libcublasLt.so.13";
    void* const library = open_library(kName);
    CublasLtApi table;
#define VQ_LOAD(function) VQ_LIBRARY_FUNCTION(table, library, kName, function);
    VQ_CUBLAS_LT_FUNCTIONS(VQ_LOAD)
#undef VQ_LOAD
    return table;
  }();
  return api;
}

}  // namespace vqlab
