// The trainer on a device: deterministic, resumable, and its bad values named.
#include <cmath>
#include <limits>

#include "device_testing.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

const std::vector<std::string> kDevice = {"device=cuda"};

std::vector<std::string> on_device(std::vector<std::string> overrides) {
  overrides.push_back("device=cuda");
  return overrides;
}

// Makes the first weight NaN.
void poison(Trainer& trainer, const Runtime& runtime) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  runtime.upload(trainer.model().parameters().weight(0).data, &nan, sizeof nan, runtime.compute());
  runtime.synchronize(runtime.compute());
}

}  // namespace

TEST_CASE("trainer: a run on the device repeats bit for bit, resumed or not", "[trainer]") {
  for (const char* kind : {"vq_ema", "vq_loss", "vq_cosine", "fsq", "none"}) {
    INFO(kind);
    Lab lab;
    const std::vector<std::string> set =
        on_device({std::string("quantizer.kind=") + kind, "data.flip=true", "data.shift=1"});
    const std::string whole = lab.train("whole", set, 12).weights_sha256;
    CHECK(lab.train("again", set, 12).weights_sha256 == whole);
    lab.train("cut", set, 5);
    CHECK(lab.train("cut", kDevice, 12, RunAccess::resume).weights_sha256 == whole);
    CHECK(lab.metrics("cut") == lab.metrics("whole"));
  }
}

TEST_CASE("trainer: launched as a graph or op by op a run has the same weights", "[trainer]") {
  for (const std::vector<std::string>& set : std::vector<std::vector<std::string>>{
           {"quantizer.restart_every=2", "data.flip=true", "data.shift=1", "train.schedule=cosine"},
           {"quantizer.kind=fsq"},
           {"loss.classifier_weight=1", "model.norm=batch", "data.mixup=0.4", "train.weight_average=0.9"}}) {
    INFO(set[0]);
    Lab lab;
    const TrainResult graph = lab.train("graph", on_device(set), 14);
    CHECK(graph.graph);
    lab.graph = false;
    const TrainResult eager = lab.train("eager", on_device(set), 14);
    CHECK(!eager.graph);
    CHECK(eager.weights_sha256 == graph.weights_sha256);
    CHECK(lab.metrics("eager") == lab.metrics("graph"));
  }
}

TEST_CASE("trainer: resident and streamed images give the device equal bits", "[trainer]") {
  const ImageSet set = synthetic_images(29, 8, 8, 3, 1);
  const Config config = parse_config(tiny_config("d"), "tiny",
                                     {"quantizer.initialisation=uniform", "data.flip=true", "data.shift=1",
                                      "loss.classifier_weight=1", "classifier.classes=10"});
  std::vector<std::vector<float>> weights;
  for (const Residency residency : {Residency::resident, Residency::streamed}) {
    Trainer trainer(config, device_runtime(), {&set, 0, set.count}, residency);
    trainer.use_graph([](const std::string& why) { FAIL(why); });
    for (int i = 0; i < 9; ++i) trainer.step();
    CHECK(trainer.has_graph());
    weights.push_back(to_host(View<const float>(trainer.model().parameters().weights()), device_runtime()));
  }
  CHECK(weights[0] == weights[1]);
}

TEST_CASE("trainer: a run moves from the CPU to the device and back", "[trainer]") {
  Lab lab;
  lab.train("a", {"device=cpu"}, 10);
  CHECK(lab.train("a", kDevice, 18, RunAccess::resume).steps == 18);
  const TrainResult end = lab.train("a", {"device=cpu"}, {}, RunAccess::resume);
  CHECK(end.steps == 24);
  CHECK(std::isfinite(end.final_step->loss));
  // The same 24 steps on the CPU alone: what the device changes are the last bits of sums.
  lab.train("b", {"device=cpu"});
  CHECK(std::abs(lab.observer.mse.back() - lab.observer.mse.at(2)) <= 0.1 * lab.observer.mse.at(2));
}

TEST_CASE("trainer: the device learns as the CPU does", "[trainer]") {
  Lab lab(40, 13, 10, 3);
  lab.train("cpu", {"device=cpu"});
  const double cpu = lab.observer.mse.back();
  lab.train("device", kDevice);
  CHECK(std::abs(lab.observer.mse.back() - cpu) <= 0.1 * cpu);
}

TEST_CASE("trainer: metrics of every step come back from the device's ring", "[trainer]") {
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {"quantizer.initialisation=uniform"});
  Trainer trainer(config, device_runtime(), {&set, 0, 40});
  for (int i = 0; i < 7; ++i) trainer.step();
  const std::vector<StepMetrics> metrics = trainer.take_metrics();
  REQUIRE(metrics.size() == 7);
  for (size_t i = 0; i < 7; ++i) {
    CHECK(metrics[i].step == int64_t(i));
    CHECK(metrics[i].poisoned == 0);
    CHECK(metrics[i].reconstruction > 0.0f);
  }
  CHECK(trainer.take_metrics().empty());
  CHECK(trainer.report().step == 7);
}

TEST_CASE("trainer: a bad value on the device halts all later steps and is named", "[trainer][bad-input]") {
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {"quantizer.initialisation=uniform"});
  Trainer trainer(config, device_runtime(), {&set, 0, 40});
  trainer.step();
  poison(trainer, device_runtime());
  const std::vector<float> codebook = to_host(trainer.model().quantizer().codebook(), device_runtime());
  trainer.step();  // the host does not know yet
  trainer.step();
  require_error(ErrorKind::failed, "latent row 0 is not finite", "step 2", [&] { trainer.report(); });
  CHECK(to_host(trainer.model().quantizer().codebook(), device_runtime()) == codebook);
}

TEST_CASE("trainer: skipped steps are counted on the device", "[trainer][bad-input]") {
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config =
      parse_config(tiny_config("d"), "tiny", {"quantizer.initialisation=uniform", "train.on_nan=skip"});
  Trainer trainer(config, device_runtime(), {&set, 0, 40});
  const std::vector<float> weights = to_host(trainer.model().parameters().weights(), device_runtime());
  poison(trainer, device_runtime());
  for (int i = 0; i < 5; ++i) trainer.step();
  CHECK(trainer.optimizer().skipped_in_a_row == 5);
  device_runtime().upload(trainer.model().parameters().weights().data, weights.data(), sizeof(float),
                          device_stream());
  trainer.step();
  CHECK(trainer.optimizer().skipped == 5);
  CHECK(trainer.optimizer().skipped_in_a_row == 0);
  CHECK(trainer.optimizer().updates == 1);
}

}  // namespace vqlab::testing
