// The engine's whole CUDA path on the emulated device, bit for bit against the CPU backend: streams, events,
// copies and every kernel; the convolutions are the CPU's there.
#include <array>

#include "device.hpp"
#include "device_testing.hpp"
#include "engine/evaluate.hpp"
#include "expect_error.hpp"
#include "kernels/core/copy.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

// All that a few steps leave behind.
struct Trace {
  std::vector<int32_t> codes;
  std::vector<float> codebook, weights, losses;
  bool operator==(const Trace&) const = default;
};

Trace trace(const Runtime& runtime, const Config& config, const ImageSet& set, int steps) {
  Trainer trainer(config, runtime, {&set, 0, set.count});
  for (int i = 0; i < steps; ++i) trainer.step();
  Trace result;
  for (const StepMetrics& m : trainer.take_metrics())
    for (const float value : {m.reconstruction, m.error, m.distance, m.squared_norm})
      result.losses.push_back(value);
  Model& model = trainer.model();
  result.codes = to_host(View<const int32_t>(model.quantizer().codes()), runtime);
  result.codebook = to_host(model.quantizer().codebook(), runtime);
  result.weights = to_host(View<const float>(model.parameters().weights()), runtime);
  return result;
}

// Everything that a run with labels may use.
const std::vector<std::string>& joint_overrides() {
  static const std::vector<std::string> overrides = {
      "loss.classifier_weight=1",       "classifier.classes=10",   "classifier.hidden=16",
      "classifier.label_smoothing=0.1", "model.norm=batch",        "data.mixup=0.4",
      "train.weight_decay=0.01",        "train.weight_average=0.9"};
  return overrides;
}

}  // namespace

// tiny_config: hidden 8, K = 16, D = 4, batches of 8.
TEST_CASE("trainer: five steps have the bits of the CPU", "[emulated]") {
  for (const char* initialisation : {"uniform", "kmeans"})
    for (const char* kind : {"vq_ema", "vq_loss"})
      for (const int64_t channels : {1, 3}) {
        INFO(kind << ", " << initialisation << ", " << channels << " channels");
        // An epoch of 3 steps, so that k-means, which waits for an epoch, happens in the third.
        const ImageSet set = synthetic_images(24, 8, 8, channels, 1);
        const Config config = parse_config(
            tiny_config("d"), "tiny",
            {std::string("quantizer.kind=") + kind, "data.flip=true", "data.shift=1",
             std::string("quantizer.initialisation=") + initialisation, "quantizer.restart_every=2"});
        const Runtime cpu("cpu", 2);
        const Trace expected = trace(cpu, config, set, 5);
        REQUIRE(expected.losses.size() == 20);
        for_few_schedules([&] {
          const Trace actual = trace(device_runtime(), config, set, 5);
          CHECK(actual.losses == expected.losses);
          CHECK(actual.codes == expected.codes);
          CHECK(actual.codebook == expected.codebook);
          CHECK(actual.weights == expected.weights);
        });
      }
}

TEST_CASE("trainer: five steps of every quantizer and gradient have the bits of the CPU", "[emulated]") {
  for (const auto& [kind, gradient] : {std::array<const char*, 2>{"fsq", "straight_through"},
                                       {"vq_cosine", "straight_through"},
                                       {"vq_cosine", "rotation"},
                                       {"vq_loss", "rotation"}}) {
    INFO(kind << ", " << gradient);
    const ImageSet set = synthetic_images(24, 8, 8, 1, 1);
    const Config config = parse_config(tiny_config("d"), "tiny",
                                       {std::string("quantizer.kind=") + kind, "quantizer.restart_every=2",
                                        std::string("quantizer.gradient=") + gradient});
    const Runtime cpu("cpu", 2);
    const Trace expected = trace(cpu, config, set, 5);
    for_few_schedules([&] { CHECK(trace(device_runtime(), config, set, 5) == expected); });
  }
}

TEST_CASE("trainer: with labels five steps have the bits of the CPU", "[emulated]") {
  ImageSet set = synthetic_images(24, 8, 8, 1, 1);
  for (size_t i = 0; i < 24; i += 2) set.labels[i] = -1;
  for (const char* more : {"loss.reconstruction_weight=1", "loss.reconstruction_weight=0"}) {
    INFO(more);
    std::vector<std::string> overrides = joint_overrides();
    overrides.push_back(more);
    const Config config = parse_config(tiny_config("d"), "tiny", overrides);
    const Runtime cpu("cpu", 2);
    const Trace expected = trace(cpu, config, set, 5);
    for_few_schedules([&] { CHECK(trace(device_runtime(), config, set, 5) == expected); });
  }
}

namespace {

// The averages, the layers' statistics and the classifier's losses too, after an evaluation on the way.
std::vector<std::vector<float>> joint_trace(const Runtime& runtime, const Config& config, const ImageSet& set,
                                            int steps, bool graph) {
  Trainer trainer(config, runtime, {&set, 0, set.count});
  if (graph) trainer.use_graph();
  std::vector<std::vector<float>> result(2);
  for (int i = 0; i < steps; ++i) {
    trainer.step();
    if (i != steps / 2) continue;
    const Evaluation e = evaluate(trainer.model(), runtime, {&set, 0, 12}, 1.0);
    result[0] = {float(e.accuracy), float(e.labelled)};
    if (e.has_decoder) result[0].push_back(float(e.mse));
  }
  for (const StepMetrics& m : trainer.take_metrics())
    for (const float value : {m.reconstruction, m.classification, m.distance, m.squared_norm})
      result[1].push_back(value);
  const ParameterStore& p = trainer.model().parameters();
  for (const View<float>& part : {p.weights(), p.averages(), p.moments1(), p.moments2()})
    result.push_back(to_host(View<const float>(part), runtime));
  for (size_t id = 0; id < p.buffers().size(); ++id)
    result.push_back(to_host(View<const float>(p.buffer(id)), runtime));
  result.push_back(to_host(trainer.model().classifier()->probabilities(), runtime));
  result.push_back(to_host(trainer.model().quantizer().codebook(), runtime));
  return result;
}

}  // namespace

// Some images have no label; k-means is in the third step.
TEST_CASE("trainer: what a net with labels keeps has the bits of the CPU, also as a graph", "[emulated]") {
  ImageSet set = synthetic_images(24, 8, 8, 1, 1);
  for (size_t i = 0; i < 24; i += 5) set.labels[i] = -1;
  for (const auto& [norm, decoder] : {std::array<const char*, 2>{"batch", "1"}, {"batch_encoder", "0"}}) {
    std::vector<std::string> overrides = joint_overrides();
    for (const std::string& more :
         {std::string("data.flip=true"), std::string("data.shift=1"), std::string("train.schedule=cosine"),
          std::string("model.norm=") + norm, std::string("loss.reconstruction_weight=") + decoder})
      overrides.push_back(more);
    const Config config = parse_config(tiny_config("d"), "tiny", overrides);
    const Runtime cpu("cpu", 2);
    const auto expected = joint_trace(cpu, config, set, 7, false);
    CHECK(expected[1].size() == 28);
    CHECK(expected[1][1] > 0.0f);
    for_few_schedules([&] {
      for (const bool graph : {false, true}) {
        const auto actual = joint_trace(device_runtime(), config, set, 7, graph);
        REQUIRE(actual.size() == expected.size());
        for (size_t i = 0; i < actual.size(); ++i) {
          INFO(norm << ", decoder " << decoder << ", graph " << graph << ", part " << i);
          CHECK(actual[i] == expected[i]);
        }
      }
    });
  }
}

TEST_CASE("trainer: in less precision five steps have the bits of the CPU", "[emulated]") {
  for (const char* precision : {"tf32", "bf16"})
    for (const int64_t channels : {1, 3}) {
      INFO(precision << ", " << channels << " channels");
      const ImageSet set = synthetic_images(24, 8, 8, channels, 1);
      const Config config =
          parse_config(tiny_config("d"), "tiny",
                       {std::string("train.precision=") + precision, "quantizer.restart_every=2"});
      const Runtime cpu("cpu", 2);
      const Trace expected = trace(cpu, config, set, 5);
      for_few_schedules([&] { CHECK(trace(device_runtime(), config, set, 5) == expected); });
    }
}

TEST_CASE("trainer: each device resumes the other's checkpoint to the same bits", "[emulated]") {
  Lab lab;
  const std::string expected = lab.train("cpu", {"device=cpu"}, 12).weights_sha256;
  lab.train("a", {"device=cpu"}, 5);
  CHECK(lab.train("a", {"device=cuda"}, 12, RunAccess::resume).weights_sha256 == expected);
  lab.train("b", {"device=cuda"}, 5);
  CHECK(lab.train("b", {"device=cpu"}, 12, RunAccess::resume).weights_sha256 == expected);
  lab.train("c", {"device=cuda"}, 12);
  CHECK(lab.weights("c") == expected);
  CHECK(lab.metrics("c") == lab.metrics("cpu"));
}

TEST_CASE("runtime: without cuDNN no device is used and cuda does not fall back", "[emulated][bad-input]") {
  setenv("SIMT_CONV_PROBLEM", "libcudnn.so.9 cannot be loaded", 1);
  CHECK(cuda_problem() == "libcudnn.so.9 cannot be loaded");
  require_error(ErrorKind::device, "libcudnn.so.9 cannot be loaded", "--device cuda",
                [] { Runtime("cuda", 0); });
  const Runtime fallback("auto", 0);
  CHECK(fallback.device() == Device::cpu);
  CHECK(fallback.note().ends_with("; no GPU used: libcudnn.so.9 cannot be loaded"));
  unsetenv("SIMT_CONV_PROBLEM");
  CHECK(Runtime("auto", 0).device() == Device::cuda);
}

// ---- the step as a graph, and what the host does in a step ----

namespace {

// How steps are given to a device.
struct Way {
  bool graph;
  Residency residency;
  std::string text() const {
    return std::string(graph ? "as a graph" : "op by op") +
           (residency == Residency::resident ? ", resident images" : ", streamed images");
  }
};
constexpr Way kWays[] = {{true, Residency::resident},
                         {true, Residency::streamed},
                         {false, Residency::resident},
                         {false, Residency::streamed}};

// Steps with an evaluation in between, which shares streams and model. The run may have been resumed.
Trace trace_with_evaluation(const Runtime& runtime, const Config& config, const ImageSet& set, int steps,
                            Way way, int64_t first = 0) {
  Trainer trainer(config, runtime, {&set, 0, set.count}, way.residency);
  if (way.graph) trainer.use_graph([](const std::string& why) { FAIL(why); });
  trainer.resume_at(first, 0, 0);
  for (int i = 0; i < steps; ++i) {
    trainer.step();
    if (i == steps / 2) (void)evaluate(trainer.model(), runtime, {&set, 0, 8}, trainer.variance());
  }
  CHECK(trainer.has_graph() == (way.graph && runtime.device() == Device::cuda));
  Trace result;
  for (const StepMetrics& m : trainer.take_metrics()) {
    result.losses.push_back(m.reconstruction);
    result.losses.push_back(m.learning_rate);
  }
  result.codes = to_host(View<const int32_t>(trainer.model().quantizer().codes()), runtime);
  result.codebook = to_host(trainer.model().quantizer().codebook(), runtime);
  result.weights = to_host(View<const float>(trainer.model().parameters().weights()), runtime);
  return result;
}

Config graph_config(const std::vector<std::string>& more = {}) {
  std::vector<std::string> overrides = {"data.flip=true", "data.shift=1", "quantizer.restart_every=2",
                                        "train.schedule=cosine", "train.warmup_steps=2"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return parse_config(tiny_config("d"), "tiny", overrides);
}

}  // namespace

// With restarts, flips, k-means on the way, a learning rate that changes in each step, and epochs that drop
// three images.
TEST_CASE("trainer: as a graph the step has the bits of the CPU", "[emulated][streams]") {
  const ImageSet set = synthetic_images(27, 8, 8, 3, 1);
  const Runtime cpu("cpu", 2);
  for (const char* kind : {"vq_ema", "vq_loss", "vq_cosine", "fsq", "none", "with labels"}) {
    const Config config =
        graph_config(kind == std::string("with labels") ? joint_overrides()
                                                        : std::vector{std::string("quantizer.kind=") + kind});
    const Trace expected = trace_with_evaluation(cpu, config, set, 9, {false, Residency::streamed});
    for_few_schedules([&] {
      for (const Way& way : kWays) {
        INFO(kind << ", " << way.text());
        CHECK(trace_with_evaluation(device_runtime(), config, set, 9, way) == expected);
      }
      CHECK(simt::captured_graphs().size() == 2);
    });
  }
}

// Scalars of 64 steps are given to the device at a time: from a step in the middle of them on, over their
// end.
TEST_CASE("trainer: a graph goes on over the end of the planned steps", "[emulated][streams]") {
  const ImageSet set = synthetic_images(27, 8, 8, 1, 1);
  const Runtime cpu("cpu", 2);
  const Config config = graph_config({"quantizer.initialisation=uniform", "train.epochs=100"});
  const int steps = int(kPlannedSteps) + 6;
  const Trace expected = trace_with_evaluation(cpu, config, set, steps, {false, Residency::resident}, 37);
  for_few_schedules(
      [&] { CHECK(trace_with_evaluation(device_runtime(), config, set, steps, kWays[0], 37) == expected); });
}

// With resident images: the graph, and once every 64 steps the scalars of the next ones. With streamed ones
// also the copy of the batch (and of its labels), begin_step and image_input.
TEST_CASE("trainer: the host launches a step once", "[emulated][streams]") {
  const ImageSet set = synthetic_images(27, 8, 8, 1, 1);
  for (const bool labels : {false, true})
    for (const Residency residency : {Residency::resident, Residency::streamed}) {
      INFO("labels " << labels << ", resident " << (residency == Residency::resident));
      simt::reset({.order = simt::Order::lazy});
      Trainer trainer(graph_config(labels ? joint_overrides() : std::vector<std::string>()), device_runtime(),
                      {&set, 0, set.count}, residency);
      trainer.use_graph();
      for (int i = 0; i < 8; ++i) trainer.step();  // k-means, then the capture
      trainer.report();
      const uint64_t eager = residency == Residency::resident ? 0 : labels ? 4 : 3;
      const simt::HostCalls before = simt::host_calls();
      for (uint64_t i = 1; i <= 10; ++i) {
        trainer.step();
        CHECK(simt::host_calls().graphs - before.graphs == i);
        CHECK(simt::host_calls().operations - before.operations == i * eager);
      }
      trainer.report();
    }
  simt::reset({.order = simt::Order::lazy});
  Trainer trainer(graph_config({"quantizer.initialisation=uniform"}), device_runtime(), {&set, 0, set.count});
  trainer.use_graph();
  for (int i = 0; i < 4; ++i) trainer.step();
  const simt::HostCalls before = simt::host_calls();
  for (int i = 4; i < int(kPlannedSteps) + 4; ++i) trainer.step();
  CHECK(simt::host_calls().graphs - before.graphs == uint64_t(kPlannedSteps));
  CHECK(simt::host_calls().operations - before.operations == 1 + 2);  // and the reading of the metrics
  trainer.report();
  simt::reset({});
}

// As where a library allocates while it is captured.
TEST_CASE("trainer: what cannot be captured runs op by op, and one line says so", "[emulated][streams]") {
  const ImageSet set = synthetic_images(27, 8, 8, 1, 1);
  for (const Residency residency : {Residency::resident, Residency::streamed}) {
    const Trace expected =
        trace_with_evaluation(device_runtime(), graph_config(), set, 9, {false, residency});
    for_few_schedules([&] {
      simt::Options options = simt::options();
      options.captures_fail = true;
      simt::reset(options);
      std::vector<std::string> told;
      Trainer trainer(graph_config(), device_runtime(), {&set, 0, set.count}, residency);
      trainer.use_graph([&](const std::string& why) { told.push_back(why); });
      for (int i = 0; i < 9; ++i) trainer.step();
      REQUIRE(told.size() == 1);
      CHECK(told[0].find("cudaStreamEndCapture") != std::string::npos);
      CHECK(!trainer.has_graph());
      CHECK(to_host(View<const float>(trainer.model().parameters().weights()), device_runtime()) ==
            expected.weights);
    });
  }
  simt::reset({});
}

TEST_CASE("graph: what fails while it is captured leaves the stream usable", "[emulated][streams]") {
  for_few_schedules([] {
    const DeviceArray<float> a(std::vector<float>{1.0f, 2.0f}), b(2);
    require_error(ErrorKind::failed, "planted", "here", [&] {
      Graph(device_stream(), [&] {
        run(CopyOp{.output = b.view(), .input = a.view()}, device_stream());
        throw Error(ErrorKind::failed, "planted", "a hint", "here");
      });
    });
    run(CopyOp{.output = b.view(), .input = a.view()}, device_stream());
    CHECK(b.download() == std::vector<float>{1.0f, 2.0f});
  });
}

namespace {

// Leaves the device room for the model of the lab's runs, and 8 KiB: their images take 4.8.
void shrink_device(const Lab& lab) {
  const Config config = parse_config(tiny_config(lab.data()), "tiny", {});
  const TrainingData data = load_training_data(config);
  Model model(config, {8, 8, 1}, config.train.batch_size, data.training().count(), Mode::training);
  int64_t left = device_runtime().available_device_bytes() - (8 << 10);
  for (const auto& [name, bytes] : model.memory_budget(Device::cuda)) left -= bytes;
  simt::Options options;
  options.device_bytes -= size_t(left);
  simt::reset(options);
}

}  // namespace

TEST_CASE("trainer: runs take the graph by default, with or without room for their images", "[emulated]") {
  Lab lab;
  const auto told = [&](const char* what) {
    return std::count_if(lab.observer.notes.begin(), lab.observer.notes.end(),
                         [&](const std::string& line) { return line.find(what) != std::string::npos; });
  };
  const std::string expected = lab.train("cpu", {"device=cpu"}, 14).weights_sha256;
  CHECK(told("read where they are") == 1);
  const std::vector<std::string> cuda = {"device=cuda"};
  const uint64_t graphs = simt::host_calls().graphs;
  CHECK(lab.train("default", cuda, 14).weights_sha256 == expected);
  CHECK(told("stay on the GPU") == 1);
  CHECK(simt::host_calls().graphs > graphs);
  for (const Way& way : kWays) {
    INFO(way.text());
    if (way.residency == Residency::streamed) shrink_device(lab);
    const uint64_t before = simt::host_calls().graphs;
    lab.graph = way.graph;
    CHECK(lab.train(way.text(), cuda, 14).weights_sha256 == expected);
    CHECK((simt::host_calls().graphs > before) == way.graph);
    simt::reset({});
  }
  CHECK(told("come from the host batch by batch") == 2);
  simt::Options options;
  options.captures_fail = true;
  simt::reset(options);
  lab.graph = true;
  CHECK(lab.train("failing", cuda, 14).weights_sha256 == expected);
  CHECK(told("no graph, ops are launched one by one: the step cannot be captured: cuda") == 1);
  simt::reset({});
}

// What a graph keeps of the step it was captured in is the same in every other.
TEST_CASE("trainer: no number that varies by step is kept by the graph", "[emulated][streams]") {
  const ImageSet set = synthetic_images(24, 8, 8, 1, 1);
  for_few_schedules([&] {
    for (const int eager_steps : {0, 5}) {
      Trainer trainer(graph_config(), device_runtime(), {&set, 0, set.count});
      for (int i = 0; i < eager_steps; ++i) trainer.step();
      trainer.use_graph();
      for (int i = 0; i < 8; ++i) trainer.step();
      trainer.report();
    }
    REQUIRE(simt::captured_graphs().size() == 2);
    CHECK(simt::captured_graphs()[0]->nodes.size() > 30);
    CHECK(simt::difference_of_captures(simt::captured_graphs()[0].get(), simt::captured_graphs()[1].get()) ==
          "");
  });
}

// The host waits for events of uploads two steps ago, which keeps it from running away, and for nothing else.
TEST_CASE("trainer: a step neither waits for the device nor allocates", "[emulated][streams]") {
  const ImageSet set = synthetic_images(24, 8, 8, 1, 1);
  std::vector<std::pair<Way, std::vector<std::string>>> cases;
  for (const Way& way : kWays) cases.insert(cases.end(), {{way, {}}, {way, joint_overrides()}});
  for (const auto& [way, overrides] : cases) {
    INFO(way.text());
    simt::Options options;
    options.order = simt::Order::lazy;
    simt::reset(options);
    Trainer trainer(graph_config(overrides), device_runtime(), {&set, 0, set.count}, way.residency);
    if (way.graph) trainer.use_graph();
    for (int i = 0; i < 8; ++i) trainer.step();  // k-means, then the capture
    const simt::HostCalls before = simt::host_calls();
    for (int i = 0; i < 10; ++i) {
      trainer.step();
      CHECK(simt::queued_operations() > 10);  // of this step: nobody has waited for it
    }
    const simt::HostCalls after = simt::host_calls();
    CHECK(after.synchronising == before.synchronising);
    CHECK(after.allocating == before.allocating);
    CHECK(after.waits_on_events - before.waits_on_events <= 2 * 10);
    trainer.report();  // one that waits is seen
    CHECK(simt::host_calls().synchronising == after.synchronising + 1);
    const Block more = device_runtime().allocate(16, MemoryKind::device, "planted");
    CHECK(simt::host_calls().allocating == after.allocating + 1);
  }
  simt::reset({});
}

}  // namespace vqlab::testing
