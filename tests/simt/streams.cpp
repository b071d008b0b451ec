#include "streams.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "device.hpp"
#include "grid.hpp"
#include "kernels/core/annotate.hpp"

namespace simt {

Device& device() {
  static Device instance;
  return instance;
}

void raise_pending() {
  Device& d = device();
  if (d.pending.empty()) return;
  std::string text;
  text.swap(d.pending);
  throw Error(text);
}

CUstream_st& checked(CUstream_st* stream) {
  if (stream == nullptr) throw Error("simt: the default stream is used");
  const auto& known = device().streams;
  if (std::find(known.begin(), known.end(), stream) == known.end())
    throw Error("simt: a stream is used that does not exist any more");
  return *stream;
}

std::string describe(const Operation& operation) {
  std::string text = operation.name;
  if (operation.stream != nullptr) text += " on stream '" + *operation.stream + "'";
  if (operation.at.line() != 0) text += " at " + file_and_line(operation.at);
  return text;
}

std::string unordered(const std::string& part, const std::string& now, bool write, const Touch& then) {
  return std::string("simt: unordered ") + (write ? "write" : "read") + " of '" + part + "' by " + now +
         ", against the " + (then.write ? "write" : "read") + " by " + describe(*then.operation) +
         ": no event or wait orders them";
}

// ---- calls ----

cudaError_t call(const std::function<cudaError_t()>& body, bool may_throw) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  may_throw = may_throw && std::uncaught_exceptions() == 0;
  install_fault_handler();
  try {
    if (may_throw) raise_pending();
    if (may_throw && d.failed) return cudaErrorLaunchFailure;
    const cudaError_t status = body();
    close_memory();
    return status;
  } catch (const Error& error) {
    d.failed = true;
    end_capture();
    close_memory();
    if (may_throw) throw;
    if (d.pending.empty()) d.pending = error.what();
    return cudaErrorLaunchFailure;
  }
}

HostCalls& host_calls() {
  static HostCalls calls;
  return calls;
}

Profiled& profiled() {
  static Profiled profiled;
  return profiled;
}

size_t queued_operations() {
  size_t count = 0;
  for (const CUstream_st* stream : device().streams)
    count += size_t(std::count_if(stream->queue.begin(), stream->queue.end(),
                                  [](const QueueItem& item) { return item.operation != nullptr; }));
  return count;
}

// ---- clocks ----

void check_order(const std::string& part, std::vector<Touch>& touches, const Touch& now, const Clock& known) {
  for (const Touch& then : touches)
    if ((now.write || then.write) && then.operation->sequence > known[then.operation->slot])
      throw Error(unordered(part, describe(*now.operation), now.write, then));
  if (now.write)
    touches.clear();
  else
    std::erase_if(touches, [&](const Touch& then) {
      return !then.write && then.operation->slot == now.operation->slot;
    });
  touches.push_back(now);
}

namespace {

void check_accesses(const QueueItem& item, const Clock& known) {
  for (const Access& access : item.accesses) {
    Allocation* allocation = find_allocation(access.address);
    if (allocation == nullptr)
      throw Error("simt: " + describe(*item.operation) + " gets a pointer that is not the device's");
    const auto* first = static_cast<const unsigned char*>(access.address);
    if (first + access.bytes > allocation->data + allocation->bytes)
      throw Error("simt: " + describe(*item.operation) + ": " + std::to_string(access.bytes) +
                  " bytes reach beyond the end of '" + allocation->rest.name + "'");
    const Touch touch{item.operation, access.write};
    if (options().check_order)
      for (Part* part : parts_of(*allocation, access)) check_order(part->name, part->touches, touch, known);
    if (allocation->pinned) hold_pinned(access, touch);
  }
}

}  // namespace

void refuse_addresses(const void* argument, size_t bytes) {
  for (size_t i = 0; i + sizeof(void*) <= bytes; i += sizeof(void*)) {
    void* word;
    std::memcpy(&word, static_cast<const char*>(argument) + i, sizeof word);
    if (find_allocation(word) != nullptr)
      throw Error("simt: a kernel's argument is a struct with a pointer but without visit_pointers()");
  }
}

// ---- queues ----

namespace {

bool can_run(const CUstream_st& stream) {
  if (stream.queue.empty()) return false;
  const QueueItem& head = stream.queue.front();
  return head.wait == nullptr || head.wait->done;
}

// For the race checker, what an operation writes that is no kernel: all of a named part where the size is not
// known.
void define_written(const QueueItem& item) {
  if (!race::kEnabled) return;
  for (const Access& access : item.accesses) {
    if (!access.write || !access.defines) continue;
    Allocation& a = *find_allocation(access.address);
    auto* begin = static_cast<unsigned char*>(const_cast<void*>(access.address));
    const auto bytes = access.bytes > 0 ? size_t(access.bytes) : size_t(end_of_part(a, begin) - begin);
    race::mark(begin, bytes, race::Bytes::defined);
  }
}

void run_head(CUstream_st& stream) {
  QueueItem item = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (item.record != nullptr) {
    item.record->done = true;
    item.record->time = std::chrono::steady_clock::now();
  }
  if (!item.function) return;
  Device& d = device();
  open_memory(item.accesses);
  d.running = item.operation.get();
  struct Stop {
    ~Stop() { device().running = nullptr; }
  } stop;
  item.function();
  if (!item.is_kernel) define_written(item);
  ++stats().operations;
  raise_pending();
}

}  // namespace

void push(CUstream_st& stream, QueueItem item) { stream.queue.push_back(std::move(item)); }

void advance(CUstream_st& stream) {
  CUstream_st* next = &stream;
  while (!can_run(*next))
    next = next->queue.front().wait->stream;  // an event is recorded before it is waited for
  run_head(*next);
}

void run_some() {
  Device& d = device();
  const Order order = options().order;
  while (order != Order::lazy) {
    std::vector<CUstream_st*> able;
    for (CUstream_st* stream : d.streams)
      if (can_run(*stream)) able.push_back(stream);
    if (able.empty() || (order == Order::random && d.random.below(2) == 0)) return;
    run_head(*able[d.random.below(able.size())]);
  }
}

void wait_for_stream(CUstream_st& stream) {
  refuse_in_capture("the host waits for a stream");
  while (!stream.queue.empty()) {
    run_some();
    if (!stream.queue.empty()) advance(stream);
  }
  device().host.join(stream.clock);
  release_holds();
  check_bands();
}

void wait_for_recording(Recording& recording) {
  refuse_in_capture("the host waits for an event");
  while (!recording.done) {
    run_some();
    if (!recording.done) advance(*recording.stream);
  }
  device().host.join(recording.clock);
  release_holds();
  check_bands();
}

void drain() {
  for (CUstream_st* stream : device().streams)
    while (!stream->queue.empty()) advance(*stream);
}

void enqueue(CUstream_st* handle, std::string name, std::vector<Access> accesses,
             std::function<void()> function, Place at, Work work, std::vector<std::string> arguments) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  install_fault_handler();
  raise_pending();
  if (d.failed) throw Error("simt: " + name + ": an earlier operation has failed");
  try {
    CUstream_st& stream = checked(handle);
    if (stream.capturing)
      return capture_node(stream, {std::move(name), at, std::move(accesses), std::move(function), work,
                                   std::move(arguments)});
    ++host_calls().operations;
    stream.clock.join(d.host);
    d.host.tick(0);
    QueueItem item;
    const uint32_t sequence = stream.clock.tick(stream.slot);
    item.operation = std::make_shared<const Operation>(
        Operation{stream.slot, sequence, std::move(name), at, stream.name, stream.clock});
    item.is_kernel = work == Work::kernel;
    item.accesses = std::move(accesses);
    item.function = std::move(function);
    check_accesses(item, stream.clock);
    push(stream, std::move(item));
    run_some();
  } catch (const Error&) {
    d.failed = true;
    close_memory();
    throw;
  }
  close_memory();
}

void reset(const Options& wanted) {
  Device& d = device();
  const std::lock_guard lock(d.mutex);
  set_options(wanted);
  if (!d.pending.empty()) std::fprintf(stderr, "forgotten: %s\n", d.pending.c_str());
  d.pending.clear();
  d.failed = false;
  end_capture();
  d.random = Random(wanted.seed);
  race::forget_operations();
  for (CUstream_st* stream : d.streams) {
    for (const QueueItem& item : stream->queue)  // so that nobody waits for it
      if (item.record != nullptr) item.record->done = true;
    stream->queue.clear();
  }
  forget_captures();
  for (auto& [data, allocation] : d.allocations) {
    allocation.holds.clear();
    allocation.rest.touches.clear();
    for (auto& [begin, part] : allocation.parts) part.touches.clear();
  }
  close_memory();
}

}  // namespace simt

namespace vqlab {

void name_stream(Stream stream, const char* name) { *simt::checked(stream.handle).name = name; }

}  // namespace vqlab
