// Whole runs on small sets: learning, determinism, resume, early stop, bad values.
#include <array>
#include <cmath>
#include <limits>

#include "engine/io/file.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace fs = std::filesystem;

TEST_CASE("training: every quantizer learns and keeps its codebook in use", "[unit]") {
  std::vector<std::array<std::string, 2>> kinds = {{"vq_ema", "rotation"}, {"vq_cosine", "rotation"}};
  for (const QuantizerEntry* entry : quantizers())
    kinds.push_back({std::string(entry->name), "straight_through"});
  for (const auto& [kind, gradient] : kinds) {
    INFO(kind << ", " << gradient);
    Lab lab(176);
    lab.train("a", {"train.epochs=12", "train.learning_rate=0.004", "quantizer.kind=" + kind,
                    "quantizer.gradient=" + gradient});
    REQUIRE(lab.observer.mse.size() == 12);
    // The set's pixel variance, which a constant picture would reach, is the yardstick.
    CHECK(lab.observer.mse.back() < 0.5 * Checkpoint(lab.run("a"), "last").facts().variance);
    CHECK(lab.observer.mse.back() < lab.observer.mse.front());
    if (kind != "none") CHECK(lab.observer.used >= 4);
  }
}

TEST_CASE("training: weights do not depend on the number of threads", "[unit]") {
  for (const char* kind : {"vq_ema", "vq_loss", "vq_cosine", "fsq", "none"}) {
    INFO(kind);
    Lab lab(80, 12, 8, 3);
    const std::string set = std::string("quantizer.kind=") + kind;
    const auto sha = [&](const char* name, const char* threads) {
      return lab.train(name, {set, threads, "train.batch_size=20", "quantizer.initialisation=uniform"})
          .weights_sha256;
    };
    const std::string one = sha("a", "threads=1");
    CHECK(sha("b", "threads=2") == one);
    CHECK(sha("c", "threads=3") == one);
  }
}

TEST_CASE("training: another seed gives other weights and the same seed the same", "[unit]") {
  Lab lab;
  const std::string first = lab.train("a").weights_sha256;
  CHECK(lab.train("b").weights_sha256 == first);
  CHECK(lab.train("c", {"seed=1"}).weights_sha256 != first);
}

TEST_CASE("training: a resumed run is bit for bit the uninterrupted one", "[unit]") {
  for (const char* kind : {"vq_ema", "vq_loss", "vq_cosine", "fsq", "none"}) {
    for (const char* initialisation : {"kmeans", "uniform"}) {
      INFO(kind << " " << initialisation);
      Lab lab;
      const bool rotates = kind == std::string("vq_cosine");
      const std::vector<std::string> set = {
          std::string("quantizer.kind=") + kind,
          std::string("quantizer.initialisation=") + initialisation,
          std::string("quantizer.gradient=") + (rotates ? "rotation" : "straight_through"),
          "data.flip=true",
          "data.shift=1",
          "train.schedule=cosine",
          "train.warmup_steps=3"};
      lab.train("whole", set, 24);
      // 3 is before k-means (which needs an epoch of 8 steps), 8 the end of an epoch, 13 in the middle of
      // one.
      for (const int64_t stop : {3, 8, 13}) {
        const std::string name = "cut-" + std::to_string(stop);
        CHECK(lab.train(name, set, stop).stopped_by == "max_steps");
        const TrainResult resumed = lab.train(name, {}, 24, RunAccess::resume);
        CHECK(resumed.steps == 24);
        CHECK(lab.weights(name) == lab.weights("whole"));
        CHECK(lab.metrics(name) == lab.metrics("whole"));
        CHECK(read_file(lab.run(name) + "/ckpt/last/optim.safetensors", 1 << 24) ==
              read_file(lab.run("whole") + "/ckpt/last/optim.safetensors", 1 << 24));
      }
    }
  }
}

TEST_CASE("training: what was logged after the last checkpoint is taken back on resume", "[unit]") {
  Lab lab;
  lab.train("whole");
  lab.train("killed", {}, 10);
  std::ofstream(lab.run("killed") + "/metrics.jsonl", std::ios::app)
      << "{\"kind\": \"step\", \"step\": 12}\n{\"half a li";
  lab.train("killed", {}, {}, RunAccess::resume);
  CHECK(lab.metrics("killed") == lab.metrics("whole"));
}

TEST_CASE("training: a removed samples directory does not stop a resumed run", "[bad-input]") {
  Lab lab;
  lab.train("a", {}, 10);
  fs::remove_all(lab.run("a") + "/samples");
  CHECK(lab.train("a", {}, {}, RunAccess::resume).steps == 24);
  CHECK(fs::exists(lab.run("a") + "/samples/step-00000024.png"));
}

TEST_CASE("training: a damaged last checkpoint falls back to the one before", "[bad-input]") {
  Lab lab;
  lab.train("whole");
  lab.train("damaged", {}, 10);
  {
    std::fstream file(lab.run("damaged") + "/ckpt/step-00000010/model.safetensors",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x55');
  }
  const TrainResult resumed = lab.train("damaged", {}, {}, RunAccess::resume);
  CHECK(resumed.steps == 24);
  REQUIRE(lab.observer.warnings.size() == 1);
  CHECK(lab.observer.warnings[0].find("step-00000010 is damaged") != std::string::npos);
  CHECK(lab.observer.warnings[0].find("the checksum of tensor") != std::string::npos);
  CHECK(lab.weights("damaged") == lab.weights("whole"));
}

TEST_CASE("training: old checkpoints go and step 0 and best and last stay", "[unit]") {
  Lab lab;
  lab.train("a", {"checkpoint.every_steps=2", "checkpoint.keep=2"});
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(lab.run("a") + "/ckpt"))
    names.push_back(entry.path().filename());
  CHECK(std::count_if(names.begin(), names.end(),
                      [](const std::string& n) { return n.starts_with("step-"); }) <= 4);
  for (const char* name : {"step-00000000", "step-00000024", "step-00000022", "best", "last"})
    CHECK(std::count(names.begin(), names.end(), name) == 1);
  CHECK(fs::read_symlink(lab.run("a") + "/ckpt/last") == "step-00000024");
  for (const std::string& name : names) CHECK_FALSE(name.starts_with(".tmp"));
}

TEST_CASE("training: patience stops a run that no longer improves", "[unit]") {
  Lab lab;
  // With so small a learning rate nothing changes but the last bits: the first evaluations may improve, later
  // ones not.
  const TrainResult result = lab.train(
      "a", {"train.epochs=200", "train.patience=3", "train.learning_rate=1e-12", "quantizer.kind=none"});
  CHECK(result.stopped_by == "patience");
  CHECK(result.steps < 200 * 8);
  REQUIRE(lab.observer.is_best.size() >= 4);
  CHECK(lab.observer.is_best.front());
  for (size_t i = lab.observer.is_best.size() - 3; i < lab.observer.is_best.size(); ++i)
    CHECK_FALSE(lab.observer.is_best[i]);
}

TEST_CASE("training: colour images of odd sides train and evaluate", "[unit]") {
  Lab lab(40, 13, 10, 3);
  lab.train("a");
  CHECK(lab.observer.mse.back() < lab.observer.mse.front());
  CHECK(fs::exists(lab.run("a") + "/samples/step-00000003.png"));
}

TEST_CASE("training: both other losses train", "[unit]") {
  for (const char* loss : {"mse", "l1"}) {
    Lab lab;
    lab.train("a", {std::string("loss.reconstruction=") + loss, "train.learning_rate=0.004"});
    CHECK(lab.observer.mse.back() < lab.observer.mse.front());
  }
}

namespace {

// A trainer whose first weight has become NaN.
std::unique_ptr<Trainer> poisoned_trainer(const Config& config, const Runtime& runtime, const ImageSet& set) {
  auto trainer = std::make_unique<Trainer>(config, runtime, ImageRange{&set, 0, set.count});
  trainer->model().parameters().weight(0).data[0] = std::numeric_limits<float>::quiet_NaN();
  return trainer;
}

}  // namespace

TEST_CASE("training: a value that is not finite stops the step and spares the state", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {"quantizer.initialisation=uniform"});
  const auto trainer = poisoned_trainer(config, runtime, set);
  const View<float> weights = trainer->model().parameters().weights();
  const std::vector<float> before(weights.data, weights.data + weights.size());
  const View<const float> codebook = trainer->model().quantizer().codebook();
  const std::vector<float> codes_before(codebook.data, codebook.data + codebook.size());
  require_error(ErrorKind::failed, "latent row 0 is not finite", "step 1", [&] { trainer->step(); });
  CHECK(std::memcmp(before.data(), weights.data, size_t(weights.bytes())) == 0);
  CHECK(std::equal(codes_before.begin(), codes_before.end(), codebook.data));
}

TEST_CASE("training: the tensor and the row that are not finite are named", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {"quantizer.initialisation=uniform"});
  const auto report_of = [&](float last_bias) {
    Trainer trainer(config, runtime, {&set, 0, 40});
    const ParameterStore& p = trainer.model().parameters();
    p.weight(p.parameters().size() - 1).data[0] = last_bias;
    std::string what;
    try {
      trainer.step();
    } catch (const Error& error) {
      what = error.what();
    }
    return what;
  };
  CHECK(report_of(1e17f) == "");
  CHECK(report_of(std::numeric_limits<float>::quiet_NaN()) == "the reconstruction of image 0 is not finite");
  CHECK(report_of(1e30f) == "the reconstruction loss is not finite");
}

TEST_CASE("training: skipped steps leave all state alone and resume in the middle of them", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  for (const char* kind : {"vq_ema", "vq_loss", "vq_cosine", "fsq"}) {
    const Config config = parse_config(
        tiny_config("d"), "tiny",
        {"quantizer.initialisation=uniform", "train.on_nan=skip", std::string("quantizer.kind=") + kind});
    Trainer trainer(config, runtime, {&set, 0, 40});
    for (int i = 0; i < 3; ++i) trainer.step();
    float& weight = trainer.model().parameters().weight(0).data[0];
    const float good = weight;
    const auto state = [&] {
      std::vector<float> values;
      for (const StateTensor& t : trainer.model().quantizer().training_state()) {
        if (t.floats) values.insert(values.end(), t.floats.data, t.floats.data + t.floats.size());
        if (t.integers) values.insert(values.end(), t.integers.data, t.integers.data + t.integers.size());
      }
      return values;
    };
    const std::vector<float> before = state();
    weight = std::numeric_limits<float>::quiet_NaN();
    for (int i = 0; i < 5; ++i) trainer.step();
    CHECK(state() == before);
    CHECK(trainer.optimizer().skipped_in_a_row == 5);
    weight = good;
    trainer.step();
    CHECK(trainer.optimizer().skipped == 5);
    CHECK(trainer.optimizer().skipped_in_a_row == 0);
    CHECK(state() != before);
  }
}

TEST_CASE("evaluation: latents that are not finite are refused", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {"quantizer.initialisation=uniform"});
  const auto trainer = poisoned_trainer(config, runtime, set);
  require_error(ErrorKind::failed, "a latent of image 0 is not finite", "latent row 0", [&] {
    evaluate(trainer->model(), runtime, {&set, 0, 40}, 1.0);
  });
}

TEST_CASE("training: on_nan skip drops bad steps but not for ever", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {"quantizer.kind=none", "train.on_nan=skip"});
  const auto trainer = poisoned_trainer(config, runtime, set);
  for (int i = 0; i < 99; ++i) trainer->step();
  CHECK(trainer->optimizer().skipped == 99);
  CHECK_THROWS_AS(trainer->step(), Error);
}

TEST_CASE("training: fewer images than a batch are refused", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(5, 8, 8, 1, 1);
  const Config config = parse_config(tiny_config("d"), "tiny", {});
  require_error(ErrorKind::data, "5 training images are fewer than a batch of 8", "d", [&] {
    Trainer(config, runtime, {&set, 0, 5});
  });
}

TEST_CASE("training: images of one colour have no variance to divide by", "[bad-input]") {
  const Runtime runtime("cpu", 1);
  ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  std::fill(set.pixels.begin(), set.pixels.end(), uint8_t{7});
  const Config config = parse_config(tiny_config("d"), "tiny", {});
  require_error(ErrorKind::data, "variance is 0", "d", [&] { Trainer(config, runtime, {&set, 0, 40}); });
}

TEST_CASE("checkpoint: one of another model is refused with the tensor named", "[bad-input]") {
  Lab lab;
  lab.train("a");
  const Runtime runtime("cpu", 1);
  const Config other = parse_config(tiny_config(lab.data()), "tiny", {"model.hidden=16"});
  Model model(other, {8, 8, 1}, 8, 64, Mode::inference);
  model.allocate(runtime);
  try {
    Checkpoint(lab.run("a"), "last").restore(model, runtime);
    FAIL("restored");
  } catch (const Error& error) {
    CHECK(int(error.kind()) == int(ErrorKind::checkpoint));
    CHECK(std::string(error.what()).find("encoder.conv1.weight") != std::string::npos);
  }
}

}  // namespace vqlab::testing
