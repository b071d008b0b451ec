// Bugs in the use of streams, planted into a trainer's loop: a ring of pinned buffers, a copy stream, a
// compute stream, the step as a graph or not. Each must be reported with both places, in every order of the
// queues.
#include <cstdio>

#include "streams_testing.hpp"

namespace simt::testing {
namespace {

using Catch::Matchers::Contains;

enum class Bug {
  none,
  no_upload_event,
  pinned_refilled_early,
  batch_overwritten_while_read,
  sums_read_before_wait,
  download_unordered,
  freed_in_flight,
  host_touches_device,
  default_stream,
  host_waits_in_capture,
  allocates_in_capture,
  fork_not_joined,
  forks_disturb
};

constexpr int kSize = 16, kRing = 2, kSteps = 10;

// The sum of kSize cells, each the sum over the steps of step * cell, is read at the end.
class Loop {
 public:
  Loop(Bug bug, bool graph) : bug_(bug), graph_(graph) {
    for (int i = 0; i < kRing; ++i) {
      const std::string number = std::to_string(i);
      vqlab::name_memory(batches_.data() + 64 * i, 64, ("batch " + number).c_str());
      vqlab::name_memory(pinned_.data + 64 * i, 64, ("pinned " + number).c_str());
    }
  }
  ~Loop() {
    for (const cudaGraphExec_t graph : graphs_)
      if (graph != nullptr) (void)cudaGraphExecDestroy(graph);
  }

  float run() {
    for (int step = 0; step < kSteps; ++step) {
      fill(step);
      upload(step % kRing);
      if (bug_ == Bug::host_touches_device) batches_.data()[0] += 1.0f;
      if (graph_)
        launch_graph(step % kRing);
      else
        accumulate(step % kRing);
      consumed_[step % kRing].record(compute_);
    }
    return read();
  }

 private:
  void fill(int step) {
    const int slot = step % kRing;
    if (bug_ != Bug::pinned_refilled_early) uploaded_[slot].wait();
    for (int i = 0; i < kSize; ++i) pinned_.data[64 * slot + i] = float(step * i);
  }

  void upload(int slot) {
    if (bug_ != Bug::batch_overwritten_while_read) consumed_[slot].hold(copy_);
    CUDA_CHECK(cudaMemcpyAsync(batches_.data() + 64 * slot, pinned_.data + 64 * slot, kSize * 4,
                               cudaMemcpyHostToDevice, copy_.handle));
    uploaded_[slot].record(copy_);
    if (bug_ != Bug::no_upload_event) uploaded_[slot].hold(compute_);
  }

  void accumulate(int slot) {
    const Stream stream = bug_ == Bug::default_stream ? Stream{Device::cuda, nullptr} : Stream(compute_);
    launch(
        "accumulate", +[](float* output, const float* input) { output[threadIdx.x] += input[threadIdx.x]; },
        {1, kSize}, stream, sums_.data(), batches_.data() + 64 * slot);
  }

  void launch_graph(int slot) {
    if (graphs_[slot] == nullptr) {
      cudaGraph_t graph = nullptr;
      CUDA_CHECK(cudaStreamBeginCapture(compute_.handle, cudaStreamCaptureModeThreadLocal));
      accumulate(slot);
      if (bug_ == Bug::host_waits_in_capture) compute_.synchronize();
      if (bug_ == Bug::allocates_in_capture) const Buffer<float> more(4);
      TestEvent fork, join;
      fork.record(compute_);
      fork.hold(copy_);
      add(copy_, more_.data(), sums_.data(), kSize, 0.0f);
      if (bug_ == Bug::forks_disturb) add(compute_, sums_.data(), sums_.data(), kSize, 0.0f);
      join.record(copy_);
      if (bug_ != Bug::fork_not_joined) {
        join.hold(compute_);
        add(compute_, more_.data(), more_.data(), kSize, 0.0f);
      }
      CUDA_CHECK(cudaStreamEndCapture(compute_.handle, &graph));
      CUDA_CHECK(cudaGraphInstantiate(&graphs_[slot], graph, 0));
      CUDA_CHECK(cudaGraphDestroy(graph));
    }
    CUDA_CHECK(cudaGraphLaunch(graphs_[slot], compute_.handle));
  }

  float read() {
    const TestStream& stream = bug_ == Bug::download_unordered ? copy_ : compute_;
    if (bug_ == Bug::freed_in_flight) {
      Buffer<float> temporary(kSize, "temporary");
      add(compute_, temporary.data(), sums_.data(), kSize, 0.0f);
    }
    CUDA_CHECK(cudaMemcpyAsync(result_.data, sums_.data(), kSize * 4, cudaMemcpyDeviceToHost, stream.handle));
    if (bug_ != Bug::sums_read_before_wait) stream.synchronize();
    float sum = 0;
    for (int i = 0; i < kSize; ++i) sum += result_.data[i];
    stream.synchronize();  // says what host code did
    return sum;
  }

  const Bug bug_;
  const bool graph_;
  const TestStream compute_{"compute"}, copy_{"copy"};
  const Buffer<float> sums_{std::vector<float>(kSize, 0.0f), compute_, "sums"};
  const Buffer<float> more_{kSize, "more"};
  const Buffer<float> batches_{64 * kRing, "batches"};
  const Pinned pinned_{64 * kRing, "pinned"}, result_{kSize, "result"};
  TestEvent uploaded_[kRing], consumed_[kRing];
  cudaGraphExec_t graphs_[kRing] = {};
};

constexpr float kExpected = 45 * 120;

struct Known {
  Bug bug;
  const char* name;
  bool graph;  // only there
  std::vector<std::string> report;
};

const std::vector<Known>& known_bugs() {
  static const std::vector<Known> all = {
      {Bug::no_upload_event,
       "missing wait for the upload",
       false,
       {"unordered read of 'batch 0' by accumulate on stream 'compute' at test_stream_bugs.cpp:",
        "against the write by the copy of 'pinned 0' to 'batch 0' on stream 'copy'"}},
      {Bug::pinned_refilled_early,
       "reused staging buffer",
       false,
       {"unordered write of 'pinned 0' by host code",
        "against the read by the copy of 'pinned 0' to 'batch 0' on stream 'copy'"}},
      {Bug::batch_overwritten_while_read,
       "batch overwritten while read",
       false,
       {"unordered write of 'batch 0' by the copy of 'pinned 0' to 'batch 0' on stream 'copy'",
        "against the read by accumulate on stream 'compute' at test_stream_bugs.cpp:"}},
      {Bug::sums_read_before_wait,
       "host read before a synchronise",
       false,
       {"unordered read of 'result' by host code", "against the write by the copy of 'sums' to 'result'"}},
      {Bug::download_unordered,
       "download on another stream",
       false,
       {"unordered read of 'sums' by the copy of 'sums' to 'result' on stream 'copy'",
        "against the write by accumulate on stream 'compute' at test_stream_bugs.cpp:"}},
      {Bug::freed_in_flight,
       "free while in flight",
       false,
       {"'temporary' is freed while add on stream 'compute' at streams_testing.hpp:", "may use it"}},
      {Bug::host_touches_device, "host code on device memory", false, {"host code", "touches device memory"}},
      {Bug::default_stream, "default stream", false, {"the default stream is used"}},
      {Bug::host_waits_in_capture,
       "host wait in a capture",
       true,
       {"the host waits for a stream while stream 'compute' is captured, after accumulate at "
        "test_stream_bugs.cpp:"}},
      {Bug::allocates_in_capture,
       "allocation in a capture",
       true,
       {"memory is allocated while stream 'compute' is captured, after accumulate at test_stream_bugs.cpp:"}},
      {Bug::fork_not_joined,
       "fork that is not joined",
       true,
       {"the capture of stream 'compute' ends before it waits for stream 'copy', whose last operation is "
        "add"}},
      {Bug::forks_disturb,
       "forks that disturb each other",
       true,
       {"unordered write of 'sums' by add on stream 'compute' at streams_testing.hpp:",
        "against the read by add on stream 'copy' at streams_testing.hpp:"}},
  };
  return all;
}

TEST_CASE("streams: a loop of uploads and kernels is right in every order, as a graph too", "[streams]") {
  for (const bool graph : {false, true}) {
    for_each_order(10, [&] { CHECK(Loop(Bug::none, graph).run() == kExpected); });
    for_each_policy(5, [&] { CHECK(Loop(Bug::none, graph).run() == kExpected); });
  }
}

TEST_CASE("streams: planted bugs are reported with both places in every order", "[streams][planted]") {
  for (const Known& known : known_bugs())
    for (const bool graph : {false, true}) {
      if (known.graph && !graph) continue;
      int runs = 0, reported = 0;
      for_each_order(5, [&] {
        std::string message;
        {
          // What destructors find waits for the next call.
          message = error_of([&] {
            { (void)Loop(known.bug, graph).run(); }
            CUDA_CHECK(cudaDeviceSynchronize());
          });
        }
        ++runs;
        reported += !message.empty();
        INFO(known.name << (graph ? ", graph" : ", eager"));
        for (const std::string& text : known.report) CHECK_THAT(message, Contains(text));
      });
      std::printf("%-32s %-6s reported in %d of %d orders\n", known.name, graph ? "graph" : "eager", reported,
                  runs);
    }
}

// Without the clocks, a lazy queue shows some of them by a wrong result.
TEST_CASE("streams: without clocks a lazy queue gives wrong results", "[streams][planted]") {
  for (const Bug bug : {Bug::no_upload_event, Bug::pinned_refilled_early}) {
    reset({.order = Order::lazy, .check_order = false});
    CHECK(!(Loop(bug, false).run() == kExpected));
  }
  reset({});
}

// ---- numbers that a graph keeps ----

cudaGraph_t capture_scaled(const TestStream& stream, float* output, const float* input, float rate) {
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal));
  add(stream, output, input, 4, rate);
  CUDA_CHECK(cudaStreamEndCapture(stream.handle, &graph));
  return graph;
}

TEST_CASE("streams: a number that varies by step and is kept by a graph is reported", "[streams][planted]") {
  reset({});
  const TestStream stream;
  const Buffer<float> a(std::vector<float>(4), stream), b(4);
  const cudaGraph_t first = capture_scaled(stream, b.data(), a.data(), 0.001f),
                    same = capture_scaled(stream, b.data(), a.data(), 0.001f),
                    later = capture_scaled(stream, b.data(), a.data(), 0.002f);
  CHECK(difference_of_captures(first, same) == "");
  CHECK_THAT(difference_of_captures(first, later),
             Contains("a graph keeps argument 3 of 'add' at streams_testing.hpp:") &&
                 Contains("at 0.001000, which later is 0.002000"));
  for (const cudaGraph_t graph : {first, same, later}) CUDA_CHECK(cudaGraphDestroy(graph));
}

TEST_CASE("streams: a graph runs when it is launched, as often as it is launched", "[streams]") {
  for_each_order(2, [] {
    const TestStream stream;
    const Buffer<float> a(std::vector<float>{1.0f}, stream, "a");
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t runnable = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal));
    cudaStreamCaptureStatus status;
    CUDA_CHECK(cudaStreamIsCapturing(stream.handle, &status));
    CHECK(status == cudaStreamCaptureStatusActive);
    add(stream, a.data(), a.data(), 1, 1.0f);
    CUDA_CHECK(cudaStreamEndCapture(stream.handle, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&runnable, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CHECK(a.download(stream)[0] == 1.0f);
    for (int i = 0; i < 3; ++i) CUDA_CHECK(cudaGraphLaunch(runnable, stream.handle));
    CHECK(a.download(stream)[0] == 4.0f);
    CUDA_CHECK(cudaGraphExecDestroy(runnable));
    CHECK(cudaStreamEndCapture(stream.handle, &graph) == cudaErrorIllegalState);
  });
}

}  // namespace
}  // namespace simt::testing
