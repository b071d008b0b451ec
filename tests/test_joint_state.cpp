// What a joint run keeps, shows to its evaluations, and takes over from another run.
#include <cmath>

#include "engine/inference.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

const std::vector<std::string> kJoint = {"loss.classifier_weight=1", "classifier.hidden=16",
                                         "classifier.dropout=0.1"};

std::vector<std::string> joint(const std::vector<std::string>& more) {
  std::vector<std::string> set = kJoint;
  set.insert(set.end(), more.begin(), more.end());
  return set;
}

Evaluation validation_of(TrainedModel& trained) {
  const NamedSplit split = load_split(trained.config(), "validation", trained.facts());
  return evaluate(trained.model(), trained.runtime(), split.range(), trained.facts().variance);
}

}  // namespace

// Batches of another size give the sums over pixels in another order; each image's own error is the same.
TEST_CASE("joint: a checkpoint evaluates as its training did", "[unit]") {
  Lab lab(176);
  lab.train("a", joint({"model.norm=batch", "train.weight_average=0.9", "train.learning_rate=0.004"}));
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const Evaluation e = validation_of(trained);
  CHECK(e.accuracy == lab.observer.accuracy.back());
  CHECK(std::abs(e.mse - lab.observer.mse.back()) <= 1e-6 * e.mse);
  const Safetensors& file = trained.checkpoint().model_file();
  for (const Buffer& buffer : trained.model().parameters().buffers()) {
    INFO(buffer.name);
    for (const float value : file.floats(buffer.name)) CHECK(value != buffer.initial);
  }
  CHECK(trained.model().parameters().buffers().size() == 2 * (3 + 2 + 1 + 2 + 1));
  // The statistics are the evaluation's: others give another.
  trained.model().parameters().buffer(0).data[0] += 1.0f;
  CHECK(std::abs(validation_of(trained).mse - e.mse) > 1e-6 * e.mse);
}

TEST_CASE("joint: an evaluation leaves a model in training as it was", "[unit]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const Config config = parse_config(
      tiny_config("d"), "tiny",
      joint({"model.norm=batch", "train.weight_average=0.9", "data.mixup=0.2", "classifier.classes=10"}));
  Trainer touched(config, runtime, {&set, 0, 40}), left_alone(config, runtime, {&set, 0, 40});
  const auto state = [](Trainer& trainer) {
    std::vector<float> all;
    const ParameterStore& p = trainer.model().parameters();
    for (const View<float>& part : {p.weights(), p.averages(), p.moments1(), p.moments2()})
      all.insert(all.end(), part.data, part.data + part.size());
    for (size_t id = 0; id < p.buffers().size(); ++id)
      all.insert(all.end(), p.buffer(id).data, p.buffer(id).data + p.buffer(id).size());
    return all;
  };
  for (int i = 0; i < 7; ++i) {
    touched.step();
    left_alone.step();
    const std::vector<float> before = state(touched);
    evaluate(touched.model(), runtime, {&set, 0, 20}, touched.variance());
    CHECK(state(touched) == before);
  }
  CHECK(state(touched) == state(left_alone));
  // With its averages it evaluates as a model of those weights.
  const Evaluation averaged = evaluate(touched.model(), runtime, {&set, 0, 20}, 1.0);
  const ParameterStore& p = touched.model().parameters();
  std::copy(p.averages().data, p.averages().data + p.averages().size(), p.weights().data);
  CHECK(evaluate(touched.model(), runtime, {&set, 0, 20}, 1.0).mse == averaged.mse);
}

TEST_CASE("joint: validation images keep their labels, and a draw leaves the others alone", "[unit]") {
  const Lab lab;
  const ImageSet set = load_image_set("idx", lab.data(), Split::train);
  const TrainingData data = load_training_data(
      parse_config(tiny_config(lab.data()), "tiny", {"loss.classifier_weight=1", "data.labels=20"}));
  CHECK(data.classes == 10);
  CHECK(data.training().count() == 64);  // all are trained on: there is a decoder
  int64_t labelled = 0;
  for (size_t i = 0; i < 80; ++i) {
    const int32_t label = data.set.labels[i];
    if (i >= 64 || label >= 0) CHECK(label == set.labels[i]);
    labelled += i < 64 && label >= 0;
  }
  CHECK(labelled == 20);
}

// Only the first 8 images have a label: a batch without them has a gradient of the reconstruction alone.
TEST_CASE("joint: images without a label train the autoencoder alone", "[unit]") {
  const Runtime runtime("cpu", 1);
  ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  std::fill(set.labels.begin(), set.labels.end(), -1);
  Trainer trainer(parse_config(tiny_config("d"), "tiny", joint({"classifier.classes=10"})), runtime,
                  {&set, 0, 40});
  const ParameterStore& p = trainer.model().parameters();
  const auto weights = [&](const char* name) {
    const View<float> w = p.weight(p.find(name));
    return std::vector<float>(w.data, w.data + w.size());
  };
  const std::vector<float> head = weights("classifier.linear1.weight"),
                           encoder = weights("encoder.conv1.weight");
  for (int i = 0; i < 5; ++i) trainer.step();
  CHECK(weights("classifier.linear1.weight") == head);
  CHECK(weights("encoder.conv1.weight") != encoder);
  CHECK(trainer.report().classification == 0.0);
  const Evaluation e = evaluate(trainer.model(), runtime, {&set, 0, 40}, 1.0);
  CHECK(e.labelled == 0);
  CHECK(e.to_json().find("accuracy") == nullptr);
}

TEST_CASE("joint: without a decoder the best checkpoint is the most accurate one", "[unit]") {
  Lab lab(176);
  lab.train("a", joint({"loss.reconstruction_weight=0", "train.epochs=10", "train.learning_rate=0.004"}));
  double best = -1.0;
  for (size_t i = 0; i < lab.observer.accuracy.size(); ++i) {
    CHECK(lab.observer.is_best[i] == (lab.observer.accuracy[i] > best));
    best = std::max(best, lab.observer.accuracy[i]);
    CHECK(std::isnan(lab.observer.mse[i]));
  }
  CHECK(best >= 0.3);  // of ten classes
  CHECK(Checkpoint(lab.run("a"), "best").progress().best_accuracy == best);
  CHECK(!std::filesystem::exists(lab.run("a") + "/samples/step-00000200.png"));
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  require_error(ErrorKind::usage, "decode needs a decoder", trained.checkpoint().directory(), [&] {
    decode_codes(trained, std::vector<int32_t>(4), 1, [](int64_t, const View<const float>&) {});
  });
}

TEST_CASE("joint: only the given places are trained on, in an order of theirs", "[unit]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const std::vector<int64_t> only = {3, 4, 8, 15, 16, 23, 31, 39};
  Model model(parse_config(tiny_config("d"), "tiny", {"loss.classifier_weight=1", "classifier.classes=10"}),
              {8, 8, 1}, 8, 8, Mode::inference);
  model.allocate(runtime);
  Feeder feeder(runtime, 8, set);
  const ImageRange range{&set, 0, 40, &only};
  CHECK(range.count() == 8);
  const auto labels = [&] {
    feeder.fill(set);
    feeder.upload(model);
    const View<int32_t> view = model.classifier()->labels();
    return std::vector<int32_t>(view.data, view.data + 8);
  };
  feeder.pick_in_order(range, 0);
  CHECK(labels() == std::vector<int32_t>{3, 4, 8, 5, 6, 3, 1, 9});
  feeder.pick_in_order(range, 6);
  CHECK(labels() == std::vector<int32_t>{1, 9, 9, 9, 9, 9, 9, 9});
  feeder.pick(range, 1, 0, 0);
  std::vector<int32_t> shuffled = labels();
  std::sort(shuffled.begin(), shuffled.end());
  CHECK(shuffled == std::vector<int32_t>{1, 3, 3, 4, 5, 6, 8, 9});
}

TEST_CASE("joint: a start from another run takes weights, averages and statistics, no optimiser", "[unit]") {
  Lab lab;
  lab.train("first", {"model.norm=batch"});
  const std::string checkpoint = std::filesystem::canonical(lab.run("first") + "/ckpt/step-00000020");
  lab.train("second",
            joint({"model.norm=batch", "train.weight_average=0.9", "train.start_from=" + checkpoint}), 0);
  const Checkpoint start(lab.run("second"), "step-00000000"), from(lab.run("first"), "step-00000020");
  int64_t same = 0;
  for (const TensorInfo& tensor : from.model_file().tensors()) {
    if (tensor.type != TensorType::f32 || start.model_file().find(tensor.name) == nullptr) continue;
    const bool of_net = tensor.name.starts_with("encoder.") || tensor.name.starts_with("decoder.") ||
                        tensor.name.starts_with("quant_conv.");
    if (!of_net) continue;
    INFO(tensor.name);
    ++same;
    CHECK(start.model_file().floats(tensor.name) == from.model_file().floats(tensor.name));
    CHECK(start.optimiser_file().floats(tensor.name + ".in_training") ==
          from.model_file().floats(tensor.name));
    if (tensor.name.find("running") != std::string::npos) continue;
    const std::vector<float> moments = start.optimiser_file().floats(tensor.name + ".exp_avg");
    CHECK(moments == std::vector<float>(moments.size(), 0.0f));
  }
  CHECK(same > 20);
  const std::vector<std::string> no_run = {"train.start_from=" + lab.data()};
  require_error(ErrorKind::checkpoint, "there is no checkpoint", lab.data() + "/ckpt",
                [&] { lab.train("third", no_run); });
  CHECK(!std::filesystem::exists(lab.run("third")));
}

TEST_CASE("cli: a dry run counts the classifier of as many classes as the data has", "[cli]") {
  Lab lab;
  const std::string path = lab.run("joint.toml");
  std::ofstream(path) << tiny_config(lab.data(), "[loss]\nclassifier_weight = 1.0\n");
  const CommandResult result = run_vqlab("train " + path + " --dry-run");
  const Config config =
      parse_config(tiny_config(lab.data()), "tiny", {"loss.classifier_weight=1", "classifier.classes=10"});
  const Model model(config, {8, 8, 1}, 8, 64, Mode::training);
  INFO(result.out << result.err);
  CHECK(result.out.find(fmt::format("model: {} parameters", model.parameters().count())) !=
        std::string::npos);
}

}  // namespace vqlab::testing
