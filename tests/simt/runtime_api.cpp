// The functions of the CUDA runtime that the project calls, for the emulated device. The declarations are the
// toolkit's own, so that signatures cannot drift.
#include <algorithm>
#include <cstring>

#include "device.hpp"

namespace {

using simt::call;
using simt::device;
using simt::Error;
using simt::reads;
using simt::writes;

void finish_queues() {  // as the functions that free things do
  if (!device().failed)
    simt::drain();
  else
    for (CUstream_st* stream : device().streams) stream->queue.clear();
  simt::check_bands();
}

std::string part_name(const void* address) {
  simt::Allocation* a = simt::find_allocation(address);
  return a == nullptr ? "pageable memory" : "'" + simt::name_at(*a, address) + "'";
}

cudaError_t allocate(void** memory, size_t bytes, bool pinned) {
  return call([&] {
    simt::refuse_in_capture("memory is allocated");
    ++simt::host_calls().allocating;
    *memory = nullptr;
    simt::Allocation* a = bytes == 0 ? nullptr : simt::allocate_memory(bytes, pinned);
    if (a != nullptr) *memory = a->data;
    return a == nullptr && bytes != 0 ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

// Memory must not be freed while operations that the host has not waited for may use it. (cudaFree() waits
// for the device, but nobody should build on that.)
std::string use_of(void* memory) {
  const simt::Allocation* a = simt::find_allocation(memory);
  if (a == nullptr || !simt::options().check_order || device().failed) return "";
  std::vector<const simt::Part*> parts = {&a->rest};
  for (const auto& [begin, part] : a->parts) parts.push_back(&part);
  for (const simt::Part* part : parts)
    for (const simt::Touch& touch : part->touches)
      if (touch.operation->sequence > device().host[touch.operation->slot])
        return "simt: '" + part->name + "' is freed while " + simt::describe(*touch.operation) +
               " may use it";
  return "";
}

cudaError_t free_block(void* memory) {
  return call(
      [&] {
        if (memory == nullptr) return cudaSuccess;
        ++simt::host_calls().allocating;
        const std::string in_use = use_of(memory);
        finish_queues();
        simt::free_memory(memory);
        if (!in_use.empty()) throw Error(in_use);
        return cudaSuccess;
      },
      false);
}

bool is_device_memory(const void* address) {
  const simt::Allocation* a = simt::find_allocation(address);
  return a != nullptr && !a->pinned;
}

}  // namespace

extern "C" {

// ---- the profiler ----

cudaError_t cudaProfilerStart() {
  return call([] {
    simt::refuse_in_capture("a profiler is started");
    ++simt::profiled().starts;
    simt::profiled().operations_before = simt::stats().operations;
    return cudaSuccess;
  });
}
cudaError_t cudaProfilerStop() {
  simt::Profiled& profiled = simt::profiled();
  ++profiled.stops;
  profiled.operations += simt::stats().operations - profiled.operations_before;
  return cudaSuccess;
}

// ---- the device ----

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index != 0) return cudaErrorInvalidDevice;
  cudaDeviceProp p{};
  std::strcpy(p.name, "emulated device");
  p.totalGlobalMem = simt::options().device_bytes;
  p.sharedMemPerBlock = simt::kMaxStaticSharedBytes;
  p.sharedMemPerBlockOptin = simt::kMaxSharedBytes;
  p.sharedMemPerMultiprocessor = simt::kMaxSharedBytes + 1024;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiProcessor = 2048;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.major = 9;
  p.multiProcessorCount = 4;  // few, so that grids sized by it loop
  p.unifiedAddressing = p.concurrentKernels = 1;
  *properties = p;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, index) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = simt::options().device_bytes;
  *free_bytes = *total_bytes - std::min(*total_bytes, device().allocated_bytes);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  return call([] {
    ++simt::host_calls().synchronising;
    for (CUstream_st* stream : device().streams) simt::wait_for_stream(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorMemoryAllocation ? "out of memory" : "failed on the emulated device";
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > simt::kMaxSharedBytes) return cudaErrorInvalidValue;
  simt::allow_shared_bytes(kernel, size_t(value));
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = int(simt::kMaxSharedBytes);
  return cudaSuccess;
}

// ---- memory ----

cudaError_t cudaMalloc(void** memory, size_t bytes) { return allocate(memory, bytes, false); }
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return allocate(memory, bytes, true); }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return allocate(memory, bytes, true); }
cudaError_t cudaFree(void* memory) { return free_block(memory); }
cudaError_t cudaFreeHost(void* memory) { return free_block(memory); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return call([&] {
    if (bytes == 0) return cudaSuccess;
    if (simt::find_allocation(from) == nullptr || simt::find_allocation(to) == nullptr) {
      simt::refuse_in_capture("a copy of pageable memory");
      ++simt::host_calls().synchronising;
    }
    const bool from_device = is_device_memory(from), to_device = is_device_memory(to);
    if ((kind == cudaMemcpyHostToDevice && (from_device || !to_device)) ||
        (kind == cudaMemcpyDeviceToHost && (!from_device || to_device)) ||
        (kind == cudaMemcpyDeviceToDevice && (!from_device || !to_device)))
      return cudaErrorInvalidValue;
    const std::string name = "the copy of " + part_name(from) + " to " + part_name(to);
    std::vector<simt::Access> accesses;
    if (simt::find_allocation(from) != nullptr) accesses.push_back(reads(from, int64_t(bytes)));
    if (simt::find_allocation(to) != nullptr) accesses.push_back(writes(to, int64_t(bytes)));
    std::function<void()> copy = [=] { std::memcpy(to, from, bytes); };
    if (simt::find_allocation(from) == nullptr) {  // pageable: read before the call returns
      const auto* first = static_cast<const char*>(from);
      copy = [to, staged = std::vector<char>(first, first + bytes)] {
        std::memcpy(to, staged.data(), staged.size());
      };
    }
    simt::enqueue(stream, name, std::move(accesses), std::move(copy), simt::Place());
    if (simt::find_allocation(to) == nullptr) simt::wait_for_stream(*stream);  // pageable: done on return
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return call([&] {
    if (bytes == 0) return cudaSuccess;
    simt::enqueue(
        stream, "the memset of " + part_name(memory), {writes(memory, int64_t(bytes))},
        [=] { std::memset(memory, value, bytes); }, simt::Place());
    return cudaSuccess;
  });
}

// ---- streams ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call([&] {
    if (flags != cudaStreamNonBlocking) throw Error("simt: a stream that waits for the default stream");
    ++simt::host_calls().allocating;
    simt::Device& d = device();
    auto* made = new CUstream_st;
    made->slot = d.slots++;
    made->name = std::make_shared<std::string>(std::to_string(made->slot));
    d.streams.push_back(made);
    *stream = made;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call(
      [&] {
        simt::checked(stream);
        finish_queues();
        simt::Device& d = device();
        std::erase(d.streams, stream);
        delete stream;
        if (d.streams.empty()) {  // nothing can be unordered with what comes: clocks need not grow for ever
          d.slots = 1;
          d.host = {};
          for (auto& [data, a] : d.allocations) {
            a.rest.touches.clear();
            for (auto& [begin, part] : a.parts) part.touches.clear();
            a.holds.clear();
          }
        }
        return cudaSuccess;
      },
      false);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&] {
    ++simt::host_calls().synchronising;
    simt::wait_for_stream(simt::checked(stream));
    return cudaSuccess;
  });
}

// ---- events ----

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  ++simt::host_calls().allocating;
  *event = new CUevent_st{(flags & cudaEventDisableTiming) == 0, nullptr};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return call([&] {
    CUstream_st& stream = simt::checked(handle);
    stream.clock.join(device().host);
    if (stream.capturing) {
      event->last = simt::capture_record(stream);
      return cudaSuccess;
    }
    event->last = std::make_shared<simt::Recording>();
    event->last->stream = &stream;
    event->last->clock = stream.clock;
    simt::QueueItem item;
    item.record = event->last;
    simt::push(stream, std::move(item));
    simt::run_some();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  return call([&] {
    CUstream_st& stream = simt::checked(handle);
    if (event->last == nullptr || simt::capture_wait(stream, *event->last)) return cudaSuccess;
    stream.clock.join(event->last->clock);
    simt::QueueItem item;
    item.wait = event->last;
    simt::push(stream, std::move(item));
    simt::run_some();
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] {
    ++simt::host_calls().waits_on_events;
    if (event->last != nullptr) simt::wait_for_recording(*event->last);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&] {
    if (event->last == nullptr) return cudaSuccess;
    if (!event->last->done) {  // a little happens between two questions
      simt::advance(*event->last->stream);
      return cudaErrorNotReady;
    }
    simt::wait_for_recording(*event->last);
    return cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  for (const cudaEvent_t event : {start, end})
    if (!event->timed || event->last == nullptr) return cudaErrorInvalidResourceHandle;
  if (!start->last->done || !end->last->done) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->last->time - start->last->time).count();
  return cudaSuccess;
}

}  // extern "C"
