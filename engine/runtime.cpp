#include "runtime.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "kernels/conv/conv2d.hpp"
#include "kernels/core/annotate.hpp"
#include "kernels/core/fill.hpp"
#include "kernels/core/parallel.hpp"

#if VQ_CUDA
#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include "kernels/core/cuda.hpp"
#endif

namespace vqlab {
namespace {

constexpr size_t kAlignment = 256;
constexpr int64_t kLibraryBytes = 512
                                  << 20;  // of a GPU, which cuDNN, cuBLASLt and our own code take when loaded

std::string vector_units() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#else
  return "baseline vectors";
#endif
}

Error out_of_memory(const std::string& what, int64_t bytes, const std::string& memory) {
  return Error(ErrorKind::resources, fmt::format("out of {}: {} needs {} bytes", memory, what, bytes),
               "use a smaller train.batch_size or model.hidden; --dry-run prints the largest batch that fits",
               what);
}

std::byte* allocate_host(size_t bytes, const std::string& what) {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, bytes));
  if (memory == nullptr) throw out_of_memory(what, int64_t(bytes), "memory");
  std::memset(memory, 0, bytes);
  return memory;
}

}  // namespace

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

Runtime::Runtime(const std::string& choice, int threads) {
  if (choice != "auto" && choice != "cpu" && choice != "cuda")
    throw Error(ErrorKind::usage, "unknown device '" + choice + "'", "choose auto, cpu or cuda", "device");
  set_worker_count(threads);
  const std::string problem = choice == "cpu" ? "" : cuda_problem();
  if (choice != "cpu" && problem.empty()) {
    open_device();
    return;
  }
  if (choice == "cuda")
    throw Error(ErrorKind::device, "no CUDA device can be used: " + problem,
                "use --device cpu, or auto to fall back to it", "--device cuda");
  note_ = fmt::format("device: CPU ({} thread{}, {})", worker_count(), worker_count() == 1 ? "" : "s",
                      vector_units());
  if (!problem.empty()) note_ += "; no GPU used: " + problem;
}

#if VQ_CUDA

std::string cuda_problem() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "no NVIDIA driver on this machine";
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess)
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  if (devices == 0) return "no CUDA device on this machine";
  // Makes the context, which a busy or full device refuses, and loads a kernel, which one too old has not.
  cudaFuncAttributes attributes{};
  cudaError_t status = cudaFree(nullptr);
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, fill_kernel_cuda());
  if (status != cudaSuccess) {
    (void)cudaGetLastError();  // told, and not to be told again
    return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
  }
  return conv_problem_cuda();
}

std::vector<std::string> cuda_devices() {
  int driver = 0, devices = 0;
  std::vector<std::string> lines;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || cudaGetDeviceCount(&devices) != cudaSuccess)
    return lines;
  for (int i = 0; i < devices; ++i) {
    cudaDeviceProp device{};
    CUDA_CHECK(cudaGetDeviceProperties(&device, i));
    lines.push_back(fmt::format("{}, sm_{}{}, {} SMs, {:.0f} GiB, L2 {:.0f} MiB, driver for CUDA {}.{}",
                                device.name, device.major, device.minor, device.multiProcessorCount,
                                double(device.totalGlobalMem) / (1 << 30),
                                double(device.l2CacheSize) / (1 << 20), driver / 1000, driver % 1000 / 10));
  }
  return lines;
}

void Runtime::open_device() {
  device_ = Device::cuda;
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  device_name_ = properties.name;
  note_ = fmt::format("device: {} (sm_{}{}, {} SMs, {:.0f} GiB)", device_name_, properties.major,
                      properties.minor, properties.multiProcessorCount,
                      double(properties.totalGlobalMem) / (1 << 30));
  for (Stream* stream : {&compute_, &copy_}) {
    stream->device = device_;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking));
  }
  name_stream(compute_, "compute");
  name_stream(copy_, "copy");
}

Runtime::~Runtime() {
  for (const Stream& stream : {compute_, copy_})
    if (stream.handle != nullptr) (void)cudaStreamDestroy(stream.handle);
}

void BlockDeleter::operator()(std::byte* memory) const {
  if (device == Device::cpu)
    std::free(memory);
  else if (kind == MemoryKind::device)
    (void)cudaFree(memory);  // a failed kernel has been reported by whoever waited for it
  else
    (void)cudaFreeHost(memory);
}

Block Runtime::allocate(int64_t bytes, MemoryKind kind, const std::string& what) const {
  const size_t rounded = std::max((size_t(bytes) + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  const BlockDeleter deleter{device_, kind};
  if (device_ == Device::cpu) return Block(allocate_host(rounded, what), deleter);
  void* memory = nullptr;
  const cudaError_t status =
      kind == MemoryKind::device ? cudaMalloc(&memory, rounded) : cudaMallocHost(&memory, rounded);
  if (status == cudaErrorMemoryAllocation)
    throw out_of_memory(what, bytes, kind == MemoryKind::device ? "GPU memory" : "page-locked memory");
  CUDA_CHECK(status);
  Block block(static_cast<std::byte*>(memory), deleter);
  name_memory(memory, int64_t(rounded), what.c_str());
  if (kind == MemoryKind::pinned) {
    std::memset(memory, 0, rounded);
  } else {
    CUDA_CHECK(cudaMemsetAsync(memory, 0, rounded, compute_.handle));
    synchronize(compute_);  // the copy stream may be the first to use it
  }
  return block;
}

int64_t Runtime::available_device_bytes() const {
  if (device_ == Device::cpu) return available_bytes();
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return std::max(int64_t(0), int64_t(free) - kLibraryBytes);
}

void Runtime::upload(void* device, const void* host, int64_t bytes, Stream stream) const {
  if (bytes == 0) return;  // a model without codes has none to copy
  if (stream.device == Device::cpu)
    std::memcpy(device, host, size_t(bytes));
  else
    CUDA_CHECK(cudaMemcpyAsync(device, host, size_t(bytes), cudaMemcpyHostToDevice, stream.handle));
}

void Runtime::download(void* host, const void* device, int64_t bytes, Stream stream) const {
  if (bytes == 0) return;
  if (stream.device == Device::cpu)
    std::memcpy(host, device, size_t(bytes));
  else
    CUDA_CHECK(cudaMemcpyAsync(host, device, size_t(bytes), cudaMemcpyDeviceToHost, stream.handle));
}

void Runtime::synchronize(Stream stream) const {
  if (stream.device == Device::cuda) CUDA_CHECK(cudaStreamSynchronize(stream.handle));
}

Event::Event(const Runtime& runtime, Timing timing) {
  if (runtime.device() == Device::cpu) return;
  CUDA_CHECK(
      cudaEventCreateWithFlags(&handle_, timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming));
}

Event::~Event() {
  if (handle_ != nullptr) (void)cudaEventDestroy(handle_);
}

void Event::record(Stream stream) {
  if (handle_ != nullptr) CUDA_CHECK(cudaEventRecord(handle_, stream.handle));
}

void Event::hold(Stream stream) const {
  if (handle_ != nullptr) CUDA_CHECK(cudaStreamWaitEvent(stream.handle, handle_, 0));
}

void Event::wait() const {
  if (handle_ != nullptr) CUDA_CHECK(cudaEventSynchronize(handle_));
}

double Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0.0f;
  if (handle_ != nullptr) CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.handle_, handle_));
  return double(milliseconds);
}

Graph::Graph(Stream stream, const std::function<void()>& enqueue) {
  struct Captured {
    cudaGraph_t graph = nullptr;
    ~Captured() {
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
    }
  } captured;
  CUDA_CHECK(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal));
  try {
    enqueue();
  } catch (...) {
    (void)cudaStreamEndCapture(stream.handle, &captured.graph);
    (void)cudaGetLastError();  // the first error is the one to tell
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(stream.handle, &captured.graph));
  CUDA_CHECK(cudaGraphInstantiate(&handle_, captured.graph, 0));
}

Graph::~Graph() {
  if (handle_ != nullptr) (void)cudaGraphExecDestroy(handle_);
}

void Graph::launch(Stream stream) const { CUDA_CHECK(cudaGraphLaunch(handle_, stream.handle)); }

namespace {
nvtxDomainHandle_t profiler_domain() {
  static const nvtxDomainHandle_t domain = nvtxDomainCreateA("vqlab");
  return domain;
}
}  // namespace

void push_profiler_range(const char* name) {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(profiler_domain(), &attributes);
}

void pop_profiler_range() { nvtxDomainRangePop(profiler_domain()); }

ProfilerCapture::ProfilerCapture(const Runtime& runtime) : runtime_(runtime) {
  if (runtime.device() == Device::cpu) return;
  for (const Stream& stream : {runtime.compute(), runtime.copy()}) runtime.synchronize(stream);
  CUDA_CHECK(cudaProfilerStart());
}

ProfilerCapture::~ProfilerCapture() {
  if (runtime_.device() == Device::cpu) return;
  for (const Stream& stream : {runtime_.compute(), runtime_.copy()})
    (void)cudaStreamSynchronize(stream.handle);  // what failed is told to whoever waits next
  (void)cudaProfilerStop();
}

#else  // a build without CUDA: host memory, and nothing to order

std::string cuda_problem() { return "this vqlab was built without CUDA"; }
std::vector<std::string> cuda_devices() { return {}; }
void Runtime::open_device() { throw_without_cuda(); }
Runtime::~Runtime() = default;
void BlockDeleter::operator()(std::byte* memory) const { std::free(memory); }

Block Runtime::allocate(int64_t bytes, MemoryKind kind, const std::string& what) const {
  const size_t rounded = std::max((size_t(bytes) + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  return Block(allocate_host(rounded, what), {device_, kind});
}

int64_t Runtime::available_device_bytes() const { return available_bytes(); }

void Runtime::upload(void* device, const void* host, int64_t bytes, Stream) const {
  if (bytes > 0) std::memcpy(device, host, size_t(bytes));
}

void Runtime::download(void* host, const void* device, int64_t bytes, Stream) const {
  if (bytes > 0) std::memcpy(host, device, size_t(bytes));
}

void Runtime::synchronize(Stream) const {}

Graph::Graph(Stream, const std::function<void()>&) { throw_without_cuda(); }
Graph::~Graph() = default;
void Graph::launch(Stream) const {}
Event::Event(const Runtime&, Timing) {}
Event::~Event() = default;
void Event::record(Stream) {}
void Event::hold(Stream) const {}
void Event::wait() const {}
double Event::milliseconds_since(const Event&) const { return 0.0; }
void push_profiler_range(const char*) {}
void pop_profiler_range() {}
ProfilerCapture::ProfilerCapture(const Runtime& runtime) : runtime_(runtime) {}
ProfilerCapture::~ProfilerCapture() = default;

#endif

Range::Range(const char* name) {
  push_profiler_range(name);
  if (op_watch != nullptr) op_watch->enter(name);
}

Range::~Range() {
  if (op_watch != nullptr) op_watch->leave();
  pop_profiler_range();
}

}  // namespace vqlab
