// Captured graphs: what a stream is given between begin and end becomes a list, which a launch puts into a
// queue. A graph with forks is replayed in the order in which it was captured; that its forks do not disturb
// each other is checked at the capture.
#include <algorithm>

#include "device.hpp"

namespace simt {

namespace {
std::vector<std::shared_ptr<CUgraph_st>>& graphs() {
  static std::vector<std::shared_ptr<CUgraph_st>> all;
  return all;
}
}  // namespace

const std::vector<std::shared_ptr<CUgraph_st>>& captured_graphs() { return graphs(); }

void forget_captures() { graphs().clear(); }

void end_capture() {
  for (CUstream_st* stream : device().streams) stream->capturing = false;
  device().capture.reset();
}

void refuse_in_capture(const std::string& what) {
  const Device& d = device();
  if (d.capture == nullptr) return;
  std::string text = "simt: " + what + " while stream '" + *d.capture->origin->name + "' is captured";
  if (!d.capture->nodes.empty()) {
    const GraphNode& last = d.capture->nodes.back();
    text += ", after " + last.name + (last.at.line() != 0 ? " at " + file_and_line(last.at) : "");
  }
  throw Error(text);
}

void capture_node(CUstream_st& stream, GraphNode node) {
  Capture& capture = *device().capture;
  if (&stream != capture.origin &&
      std::find(capture.forks.begin(), capture.forks.end(), &stream) == capture.forks.end())
    capture.forks.push_back(&stream);
  Clock& clock = capture.clocks[&stream];
  const uint32_t sequence = clock.tick(stream.slot);
  const auto operation = std::make_shared<const Operation>(
      Operation{stream.slot, sequence, node.name, node.at, stream.name, clock});
  for (const Access& access : node.accesses)
    if (Allocation* allocation = find_allocation(access.address);
        allocation != nullptr && options().check_order)
      for (Part* part : parts_of(*allocation, access))
        check_order(part->name, capture.touches[part], {operation, access.write}, clock);
  capture.nodes.push_back(std::move(node));
}

std::shared_ptr<Recording> capture_record(CUstream_st& stream) {
  auto recording = std::make_shared<Recording>();
  recording->stream = &stream;
  recording->captured = true;
  recording->clock = device().capture->clocks[&stream];
  return recording;
}

bool capture_wait(CUstream_st& stream, Recording& recording) {
  Device& d = device();
  if (!recording.captured && !stream.capturing) return false;
  if (d.capture == nullptr) throw Error("simt: a stream waits for an event that was recorded in a capture");
  if (!recording.captured)
    throw Error("simt: a captured stream waits for an event from outside of the capture");
  stream.capturing = true;
  d.capture->clocks[&stream].join(recording.clock);
  if (&stream == d.capture->origin) std::erase(d.capture->forks, recording.stream);
  return true;
}

std::string difference_of_captures(CUgraph_st* first, CUgraph_st* second) {
  const auto &a = first->nodes, &b = second->nodes;
  const auto place = [](const GraphNode& node) {
    return "'" + node.name + "'" + (node.at.line() != 0 ? " at " + file_and_line(node.at) : "");
  };
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (a[i].name != b[i].name)
      return "operation " + std::to_string(i) + " is " + place(a[i]) + " and then " + place(b[i]);
    for (size_t j = 0; j < a[i].arguments.size(); ++j)
      if (a[i].arguments[j] != b[i].arguments[j])
        return "a graph keeps argument " + std::to_string(j) + " of " + place(a[i]) + " at " +
               a[i].arguments[j] + ", which later is " + b[i].arguments[j];
  }
  return a.size() == b.size() ? "" : "the numbers of operations differ";
}

}  // namespace simt

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return simt::call([&] {
    simt::Device& d = simt::device();
    simt::checked(stream);
    if (d.capture != nullptr) return cudaErrorStreamCaptureUnsupported;
    d.capture = std::make_unique<simt::Capture>();
    d.capture->origin = stream;
    stream->capturing = true;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = simt::checked(stream).capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return simt::call([&] {
    simt::Device& d = simt::device();
    if (d.capture == nullptr || d.capture->origin != stream) return cudaErrorIllegalState;
    if (!d.capture->forks.empty())
      throw simt::Error("simt: the capture of stream '" + *stream->name +
                        "' ends before it waits for stream '" + *d.capture->forks[0]->name +
                        "', whose last operation is " + d.capture->nodes.back().name);
    if (simt::options().captures_fail) {
      simt::end_capture();
      return cudaErrorStreamCaptureInvalidated;
    }
    *graph = new CUgraph_st{std::move(d.capture->nodes)};
    simt::graphs().push_back(std::make_shared<CUgraph_st>(**graph));
    simt::end_capture();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* runnable, cudaGraph_t graph, unsigned long long) {
  *runnable = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const uint64_t operations = simt::host_calls().operations;
  for (const simt::GraphNode& node : graph->nodes)
    simt::enqueue(stream, node.name, node.accesses, node.function, node.at, node.work, node.arguments);
  simt::host_calls().operations = operations;
  ++simt::host_calls().graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

}  // extern "C"
