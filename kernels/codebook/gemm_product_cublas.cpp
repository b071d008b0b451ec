#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "../core/cublas_lt.hpp"
#include "../core/cuda.hpp"
#include "gemm_product.hpp"

namespace vqlab {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorKind::failed, fmt::format("{}: {}", call, cublas_lt().cublasLtGetStatusString(status)),
              "use another variant of the lookup: `vqlab compare --list` shows all");
}
#define CUBLAS_LT(function, ...) check(cublas_lt().function(__VA_ARGS__), #function)

// Objects of cuBLASLt, destroyed by its own functions.
template <class T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, cublasStatus_t (*)(T)>;

Owned<cublasLtMatrixLayout_t> layout(int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t made = nullptr;
  CUBLAS_LT(cublasLtMatrixLayoutCreate, &made, CUDA_R_32F, uint64_t(rows), uint64_t(columns), rows);
  return {made, cublas_lt().cublasLtMatrixLayoutDestroy};
}

// The largest power of two, up to 256, that divides the address.
uint32_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return uint32_t(address & -address);
}

// How one shape is multiplied. cuBLASLt's matrices lie column by column, so that it sees each of ours
// transposed: product^T (K, rows) = (codebook^T)^T (D, K) times latents^T (D, rows).
struct Plan {
  Owned<cublasLtMatmulDesc_t> operation{nullptr, nullptr};
  Owned<cublasLtMatrixLayout_t> codebook{nullptr, nullptr}, latents{nullptr, nullptr},
      product{nullptr, nullptr};
  cublasLtMatmulAlgo_t algorithm{};
};

// rows, K, D; alignment of product, latents, codebook; bytes of workspace
using Shape = std::tuple<int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t, uint64_t>;

Plan make_plan(cublasLtHandle_t handle, const Shape& shape) {
  const auto& [rows, K, D, product_alignment, latents_alignment, codebook_alignment, workspace] = shape;
  Plan plan;
  cublasLtMatmulDesc_t operation = nullptr;
  CUBLAS_LT(cublasLtMatmulDescCreate, &operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  plan.operation = {operation, cublas_lt().cublasLtMatmulDescDestroy};
  const cublasOperation_t transposed = CUBLAS_OP_T;
  CUBLAS_LT(cublasLtMatmulDescSetAttribute, operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
            sizeof transposed);
  plan.codebook = layout(D, K), plan.latents = layout(D, rows), plan.product = layout(K, rows);

  cublasLtMatmulPreference_t made = nullptr;
  CUBLAS_LT(cublasLtMatmulPreferenceCreate, &made);
  const Owned<cublasLtMatmulPreference_t> preference(made, cublas_lt().cublasLtMatmulPreferenceDestroy);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    CUBLAS_LT(cublasLtMatmulPreferenceSetAttribute, made, attribute, &value, sizeof value);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, codebook_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, latents_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, product_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product_alignment);

  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  CUBLAS_LT(cublasLtMatmulAlgoGetHeuristic, handle, operation, plan.codebook.get(), plan.latents.get(),
            plan.product.get(), plan.product.get(), made, 1, &found, &count);
  if (count == 0) check(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic");
  plan.algorithm = found.algo;
  return plan;
}

// The handle and the plans, for the life of the process. The handle is not destroyed: at exit the driver may
// be gone before.
class Plans {
 public:
  Plans() { CUBLAS_LT(cublasLtCreate, &handle_); }
  cublasLtHandle_t handle() const { return handle_; }
  const Plan& of(const Shape& shape) {
    const std::lock_guard lock(mutex_);
    const auto known = plans_.find(shape);
    if (known != plans_.end()) return known->second;
    return plans_.emplace(shape, make_plan(handle_, shape)).first->second;
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<Shape, Plan> plans_;
};

Plans& plans() {
  static Plans* const all = new Plans();
  return *all;
}

}  // namespace

bool gemm_product_available() {
  static const bool available = [] {
    try {
      cublas_lt();
      return true;
    } catch (const Error&) {
      return false;
    }
  }();
  return available;
}

void gemm_product(float* product, const float* latents, const float* codebook, int64_t rows, int64_t K,
                  int64_t D, const View<std::byte>& workspace, Stream stream) {
  const Plan& plan = plans().of(
      {rows, K, D, alignment(product), alignment(latents), alignment(codebook), uint64_t(workspace.size())});
  const float one = 1.0f, zero = 0.0f;
  CUBLAS_LT(cublasLtMatmul, plans().handle(), plan.operation.get(), &one, codebook, plan.codebook.get(),
            latents, plan.latents.get(), &zero, product, plan.product.get(), product, plan.product.get(),
            &plan.algorithm, workspace.data, size_t(workspace.size()), stream.handle);
  check_launch("cublasLtMatmul", cudaSuccess, stream, std::source_location::current());
}

}  // namespace vqlab
