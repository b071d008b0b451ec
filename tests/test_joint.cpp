// Runs with a classifier: labels, normalisation, regularisers, starting points.
#include <cmath>

#include "engine/data/labels.hpp"
#include "engine/inference.hpp"
#include "engine/io/file.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

// Everything that a joint run may use at once.
std::vector<std::string> everything() {
  return {"loss.classifier_weight=1",
          "classifier.hidden=16",
          "classifier.label_smoothing=0.1",
          "model.norm=batch",
          "data.mixup=0.2",
          "data.flip=true",
          "data.shift=1",
          "train.schedule=cosine",
          "train.warmup_steps=3",
          "train.weight_decay=0.01",
          "train.weight_average=0.9"};
}

std::vector<std::string> with(std::vector<std::string> set, const std::vector<std::string>& more) {
  set.insert(set.end(), more.begin(), more.end());
  return set;
}

std::vector<float> tensor(const Lab& lab, const std::string& run, const std::string& which,
                          const std::string& name) {
  return Checkpoint(lab.run(run), which).model_file().floats(name);
}

}  // namespace

TEST_CASE("joint: a classifier on the codes learns, with and without normalisation", "[unit]") {
  for (const char* norm : {"none", "batch_encoder", "batch"}) {
    INFO(norm);
    Lab lab(336);
    lab.train("a", {"loss.classifier_weight=1", "classifier.hidden=16", "classifier.dropout=0.1",
                    "train.epochs=12", "train.learning_rate=0.004", std::string("model.norm=") + norm});
    REQUIRE(lab.observer.accuracy.size() == 12);
    CHECK(lab.observer.accuracy.back() >= 0.5);  // of ten classes
    CHECK(lab.observer.mse.back() < lab.observer.mse.front());
  }
}

TEST_CASE("joint: a resumed run is bit for bit the uninterrupted one", "[unit]") {
  Lab lab;
  lab.train("whole", everything(), 24);
  for (const int64_t stop : {3, 13}) {
    const std::string name = "cut-" + std::to_string(stop);
    lab.train(name, everything(), stop);
    lab.train(name, {}, 24, RunAccess::resume);
    CHECK(lab.weights(name) == lab.weights("whole"));
    CHECK(lab.metrics(name) == lab.metrics("whole"));
    CHECK(read_file(lab.run(name) + "/ckpt/last/optim.safetensors", 1 << 24) ==
          read_file(lab.run("whole") + "/ckpt/last/optim.safetensors", 1 << 24));
  }
}

TEST_CASE("joint: weights do not depend on the number of threads", "[unit]") {
  Lab lab(80, 12, 8, 3);
  const std::string one = lab.train("a", with(everything(), {"threads=1"})).weights_sha256;
  CHECK(lab.train("b", with(everything(), {"threads=3"})).weights_sha256 == one);
}

TEST_CASE("joint: each regulariser changes the weights", "[unit]") {
  Lab lab;
  const std::vector<std::string> plain = {"loss.classifier_weight=1", "classifier.hidden=16",
                                          "classifier.dropout=0"};
  const std::string base = lab.train("base", plain).weights_sha256;
  for (const char* set : {"classifier.dropout=0.5", "classifier.label_smoothing=0.2", "data.mixup=0.5",
                          "train.weight_decay=0.1", "train.weight_average=0.9", "model.norm=batch",
                          "data.labels=20", "loss.classifier_weight=2"}) {
    INFO(set);
    CHECK(lab.train(set, with(plain, {set})).weights_sha256 != base);
  }
}

TEST_CASE("joint: normalisation by the averages of training, which the checkpoint keeps", "[unit]") {
  Lab lab;
  lab.train("a", {"loss.classifier_weight=1", "model.norm=batch_encoder"});
  const std::vector<float> mean = tensor(lab, "a", "last", "encoder.norm1.running_mean");
  CHECK(tensor(lab, "a", "step-00000000", "encoder.norm1.running_mean") ==
        std::vector<float>(mean.size(), 0.0f));
  CHECK(mean != std::vector<float>(mean.size(), 0.0f));
  // An image's codes do not depend on the batch that it is in.
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const ImageSet set = load_image_set("idx", lab.data(), Split::train);
  const std::vector<int32_t> all = encode_images(trained, {&set, 0, 8}),
                             one = encode_images(trained, {&set, 3, 4});
  const size_t places = one.size();
  CHECK(one == std::vector<int32_t>(all.begin() + 3 * int64_t(places), all.begin() + 4 * int64_t(places)));
}

TEST_CASE("joint: averaged weights are evaluated and kept, training goes on with its own", "[unit]") {
  Lab lab;
  const std::vector<std::string> averaging = {"model.norm=batch", "train.weight_average=0.9"};
  lab.train("plain", {"model.norm=batch"});
  lab.train("averaged", averaging);
  // What is in training is the same in both runs, although one was evaluated with other weights and
  // statistics.
  const Checkpoint plain(lab.run("plain"), "last"), averaged(lab.run("averaged"), "last");
  for (const std::string name : {"encoder.conv1.weight", "encoder.norm1.running_mean"}) {
    INFO(name);
    CHECK(averaged.optimiser_file().floats(name + ".in_training") == plain.model_file().floats(name));
    CHECK(averaged.model_file().floats(name) != plain.model_file().floats(name));
  }
  // The first average keeps 2 / 11 of the start, which is 0 of a mean.
  lab.train("one step", averaging, 1);
  const Checkpoint one(lab.run("one step"), "last");
  const std::vector<float> mean = one.optimiser_file().floats("encoder.norm1.running_mean.in_training"),
                           average = one.model_file().floats("encoder.norm1.running_mean");
  for (size_t i = 0; i < mean.size(); ++i)
    CHECK(std::abs(average[i] - mean[i] * 9.0f / 11.0f) <= 1e-6f * std::abs(mean[i]));
}

TEST_CASE("joint: without a decoder only labelled images are trained on, and accuracy decides", "[unit]") {
  Lab lab(336);
  const TrainResult result = lab.train("a", {"loss.classifier_weight=1", "loss.reconstruction_weight=0",
                                             "quantizer.kind=none", "data.labels=40", "train.epochs=4"});
  CHECK(result.steps == 4 * 40 / 8);
  const Checkpoint last(lab.run("a"), "last");
  CHECK(last.progress().best_accuracy.has_value());
  CHECK(!last.progress().best_mse.has_value());
  CHECK(last.model_file().find("decoder.conv1.weight") == nullptr);
  require_failure(run_vqlab("reconstruct " + lab.run("a")), 2, "needs a decoder", "reconstruction_weight");
  const CommandResult eval = run_vqlab("eval --json " + lab.run("a"));
  CHECK(eval.exit_code == 0);
  CHECK(eval.out.find("\"mse\": null") != std::string::npos);
  CHECK(eval.out.find("\"accuracy\": ") != std::string::npos);
}

TEST_CASE("joint: a run starts from what fits of another", "[unit]") {
  Lab lab;
  lab.train("first");
  lab.train("second", {"loss.classifier_weight=1", "train.start_from=" + lab.run("first")}, 0);
  CHECK(tensor(lab, "second", "last", "encoder.conv1.weight") ==
        tensor(lab, "first", "last", "encoder.conv1.weight"));
  require_error(ErrorKind::usage, "encoder.conv1.weight of the run does not fit",
                Checkpoint(lab.run("first"), "last").directory(), [&] {
                  lab.train("third", {"model.hidden=6", "model.residual_hidden=3", "quantizer.dim=3",
                                      "model.residual_blocks=2", "train.start_from=" + lab.run("first")});
                });
  CHECK_THROWS_AS(lab.train("fourth", {"train.start_from=" + lab.data()}), Error);
}

TEST_CASE("joint: unlabelled images are no hindrance", "[unit]") {
  Lab lab(336);
  lab.train("a", {"loss.classifier_weight=1", "data.labels=10", "train.epochs=2"});
  for (const double mse : lab.observer.mse) CHECK(std::isfinite(mse));
  Config config =
      parse_config(tiny_config(lab.data()), "tiny", {"loss.classifier_weight=1", "data.labels=20"});
  const TrainingData data = load_training_data(config), again = load_training_data(config);
  std::vector<int64_t> of_class(10);
  for (int64_t i = 0; i < data.training().count(); ++i)
    if (const int32_t label = data.set.labels[size_t(i)]; label >= 0) ++of_class[size_t(label)];
  CHECK(of_class == std::vector<int64_t>(10, 2));
  CHECK(data.set.labels == again.set.labels);
  config.seed = 1;
  CHECK(load_training_data(config).set.labels != data.set.labels);
}

TEST_CASE("joint: settings that do not go together are refused", "[bad-input]") {
  const auto refuse = [](const std::string& what, const std::vector<std::string>& set) {
    require_error(ErrorKind::usage, what, "tiny", [&] { parse_config(tiny_config("x"), "tiny", set); });
  };
  Lab small(80, 4, 4);
  require_error(ErrorKind::usage, "a batch of one pixel", "model.norm", [&] {
    small.train("a", {"model.norm=batch", "train.batch_size=1"});
  });
  refuse("leave nothing to learn", {"loss.reconstruction_weight=0"});
  refuse("labels serve no one", {"data.labels=10"});
  const std::vector<std::string> joint = {"loss.classifier_weight=1"};
  Lab lab;
  require_error(ErrorKind::usage, "more than there are of class", "labels",
                [&] { lab.train("a", with(joint, {"data.labels=70"})); });
  for (const char* set : {"classifier.dropout=1", "classifier.label_smoothing=-0.1", "data.mixup=5",
                          "train.weight_average=1", "train.weight_decay=-1", "model.norm=layer"})
    CHECK_THROWS_AS(parse_config(tiny_config("x"), "tiny", with(joint, {set})), Error);
}

TEST_CASE("joint: sets without labels, with one class or with other classes are refused", "[bad-input]") {
  const std::vector<std::string> joint = {"loss.classifier_weight=1"};
  Lab lab;
  ImageSet train = synthetic_images(80, 8, 8, 1, 1), test = synthetic_images(24, 8, 8, 1, 2);
  std::filesystem::remove(lab.data() + "/train-labels-idx1-ubyte");
  require_error(ErrorKind::data, "the set has none", lab.data(), [&] { lab.train("a", joint); });
  ImageSet one_class = train;
  std::fill(one_class.labels.begin(), one_class.labels.end(), 4);
  write_idx_set(lab.data(), one_class, test);
  require_error(ErrorKind::data, "all 80 pictures are of class 4", lab.data(),
                [&] { lab.train("a", joint); });
  for (int32_t& label : train.labels) label %= 5;
  write_idx_set(lab.data(), train, test);
  lab.train("b", joint);
  require_failure(run_vqlab("eval " + lab.run("b")), 3, "training knew the classes 0 to 4",
                  "splits of one data set");
}

}  // namespace vqlab::testing
