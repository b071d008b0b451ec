// The functions of cuBLASLt that we use, found at run time and typed by its own header:
// cublas_lt().cublasLtMatmul(...) reads like the C API.
#pragma once

#include <cublasLt.h>

#define VQ_CUBLAS_LT_FUNCTIONS(X)         \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetVersion)                   \
  X(cublasLtGetStatusString)              \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)          \
  X(cublasLtMatrixLayoutSetAttribute)     \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatmulAlgoGetHeuristic)

namespace vqlab {

struct CublasLtApi {
#define VQ_FIELD(function) decltype(&::function) function;
  VQ_CUBLAS_LT_FUNCTIONS(VQ_FIELD)
#undef VQ_FIELD
};

// Loads the library on first use. Throws Error(device) if it cannot be.
const CublasLtApi& cublas_lt();

}  // namespace vqlab
