// The engine's whole CUDA path on the emulated device, bit for bit against the CPU backend: streams, events,
// copies and every kernel; the convolutions are the CPU's there.
#include <array>

#include "device.hpp"
#include "device_testing.hpp"
#include "engine/evaluate.hpp"
#include "expect_error.hpp"
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
  const std::string expected = lab.train("cpu", {}, 12).weights_sha256;
  lab.train("a", {}, 5);
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

// Steps with an evaluation in between, which shares streams and model.
Trace trace_with_evaluation(const Config& config, const ImageSet& set, int steps, bool graph) {
  const Runtime& runtime = device_runtime();
  Trainer trainer(config, runtime, {&set, 0, set.count});
  if (graph) trainer.use_graph();
  for (int i = 0; i < steps; ++i) {
    trainer.step();
    if (i == steps / 2) (void)evaluate(trainer.model(), runtime, {&set, 0, 8}, trainer.variance());
  }
  Trace result;
  for (const StepMetrics& m : trainer.take_metrics()) result.losses.push_back(m.reconstruction);
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

// With restarts, flips, k-means on the way and a learning rate that changes in each step.
TEST_CASE("trainer: as a graph the step has the bits of the eager step", "[emulated][streams]") {
  const ImageSet set = synthetic_images(24, 8, 8, 3, 1);
  for (const char* kind : {"vq_ema", "vq_loss", "vq_cosine", "fsq", "none", "with labels"}) {
    const Config config =
        graph_config(kind == std::string("with labels") ? joint_overrides()
                                                        : std::vector{std::string("quantizer.kind=") + kind});
    for_few_schedules([&] {
      INFO(kind);
      const Trace eager = trace_with_evaluation(config, set, 9, false);
      CHECK(simt::captured_graphs().empty());
      CHECK(trace_with_evaluation(config, set, 9, true) == eager);
      CHECK(simt::captured_graphs().size() == 1);
    });
  }
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
  for (const auto& [graph, overrides] : std::vector<std::pair<bool, std::vector<std::string>>>{
           {false, {}}, {true, {}}, {false, joint_overrides()}, {true, joint_overrides()}}) {
    simt::Options options;
    options.order = simt::Order::lazy;
    simt::reset(options);
    Trainer trainer(graph_config(overrides), device_runtime(), {&set, 0, set.count});
    if (graph) trainer.use_graph();
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
