#include "runtime.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "kernels/core/parallel.hpp"

#if VQ_CUDA
#include <cuda_runtime_api.h>
#endif

namespace vqlab {
namespace {

constexpr size_t kAlignment = 256;

std::string vector_units() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#else
  return "baseline vectors";
#endif
}

}  // namespace

std::string cuda_problem() {
#if VQ_CUDA
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "no NVIDIA driver on this machine";
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess)
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  if (devices == 0) return "no CUDA device on this machine";
  return "the training ops have no CUDA kernels yet";
#else
  return "this vqlab was built without CUDA";
#endif
}

int64_t available_bytes() {
  int64_t available = 0;
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (int64_t kibibytes; file >> key >> kibibytes; file.ignore(16, '\n'))
    if (key == "MemAvailable:") available = kibibytes * 1024;
  int64_t limit = 0, used = 0;  // of a container; "max" is no number
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used)
    available = std::min(available, limit - used);
  return available;
}

void BlockDeleter::operator()(std::byte* memory) const { std::free(memory); }

Runtime::Runtime(const std::string& choice, int threads) {
  if (choice != "auto" && choice != "cpu" && choice != "cuda")
    throw Error(ErrorKind::usage, "unknown device '" + choice + "'", "choose auto, cpu or cuda", "device");
  set_worker_count(threads);
  const std::string problem = choice == "cpu" ? "" : cuda_problem();
  if (choice == "cuda")
    throw Error(ErrorKind::device, "no CUDA device can be used: " + problem,
                "use --device cpu, or auto to fall back to it", "--device cuda");
  note_ = fmt::format("device: CPU ({} thread{}, {})", worker_count(), worker_count() == 1 ? "" : "s",
                      vector_units());
  if (!problem.empty()) note_ += "; no GPU used: " + problem;
}

Block Runtime::allocate(int64_t bytes, MemoryKind kind, const std::string& what) const {
  const size_t rounded = (size_t(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, std::max(rounded, kAlignment)));
  if (memory == nullptr)
    throw Error(
        ErrorKind::resources, fmt::format("out of memory: {} needs {} bytes", what, bytes),
        "use a smaller train.batch_size or model.hidden; --dry-run prints the largest batch that fits", what);
  std::memset(memory, 0, std::max(rounded, kAlignment));
  return Block(memory, BlockDeleter{device_, kind});
}

void Runtime::upload(void* device, const void* host, int64_t bytes, Stream) const {
  if (bytes > 0) std::memcpy(device, host, size_t(bytes));  // a model without codes has none to copy
}

void Runtime::download(void* host, const void* device, int64_t bytes, Stream) const {
  if (bytes > 0) std::memcpy(host, device, size_t(bytes));
}

void Runtime::synchronize(Stream) const {}

}  // namespace vqlab
