// A call of recognition as a whole: what it checks before it computes, what its heads see, how it ends early.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "desk.hpp"
#include "engine/experiment/report.hpp"
#include "engine/io/png.hpp"
#include "engine/recognition/knn.hpp"
#include "engine/recognition/recognition.hpp"
#include "expect_error.hpp"
#include "kernels/core/parallel.hpp"
#include "lab.hpp"
#include "planted_variant.hpp"

namespace vqlab::testing {
namespace {

namespace fs = std::filesystem;

const auto kSilent = [](const std::string&) {};

int64_t count_of(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("recognition: what cannot work is refused before anything is computed", "[bad-input]") {
  Lab lab;
  lab.train("a", {"loss.classifier_weight=1", "loss.reconstruction_weight=0"});
  ImageSet train = synthetic_images(80, 8, 8, 1, 1);
  for (size_t i = 0; i < 80; ++i)
    if (train.labels[i] == 7 && i > 10) train.labels[i] = 8;
  write_idx_set(lab.data(), train, synthetic_images(24, 8, 8, 1, 2));
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const auto refuse = [&](const std::string& what, const std::string& where,
                          const RecognitionOptions& options) {
    int64_t rows = 0;
    require_error(ErrorKind::usage, what, where,
                  [&] { recognise(trained, options, [&](const std::string&) { ++rows; }); });
    CHECK(rows == 0);
  };
  refuse("feature dec_h needs a decoder", trained.checkpoint().directory(),
         {.features = {"pixels", "dec_h"}, .heads = {"knn"}});
  refuse("more than there are of class 7", "labels",
         {.features = {"pixels"}, .heads = {"knn"}, .labels = {10, 20}});
  refuse("5 neighbours of 4 labelled images", "knn",
         {.features = {"pixels"}, .heads = {"knn"}, .labels = {10, 4}});
}

TEST_CASE("knn: runs the lookup that it is given", "[unit]") {
  static int calls = 0;
  const auto planted = planted_variant<LookupOp>([](const LookupOp& op, Stream) {
    ++calls;
    LookupOp plain = op;
    plain.variant = nullptr;
    run_cpu(plain);
  });
  const Runtime runtime("cpu", 0);
  const FeatureMatrix training{.rows = 600, .dims = 3, .values = normal_floats(1800, 1)},
      queries{.rows = 20, .dims = 3, .values = normal_floats(60, 2)};
  std::vector<int32_t> labels;
  for (int32_t i = 0; i < 600; ++i) labels.push_back(i % 7);
  CHECK(nearest_neighbours(runtime, training, labels, queries, 5, &planted) ==
        nearest_neighbours(runtime, training, labels, queries, 5));
  CHECK(calls == 3);  // pieces of 256 rows
}

TEST_CASE("recognition: training the encoder sees the images that the other heads see", "[unit]") {
  Lab lab(176);  // of which training holds 16 back
  lab.train("a");
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const auto rows = recognise(trained, {.heads = {"scratch"}, .labels = {176, 0}, .draws = 1}, kSilent);
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].labels == 176);
  CHECK(rows[1].labels == 176);
  CHECK(rows[0].predictions == rows[1].predictions);
}

TEST_CASE("recognition: trains with the threads and the seed of the call and leaves no trace", "[unit]") {
  Lab lab;
  lab.train("a", {"train.epochs=1"});
  const TemporaryDirectory temporary;
  setenv("TMPDIR", temporary.path().c_str(), 1);
  const std::string foreign = temporary / fmt::format("vqlab-finetune-{}", getpid());
  fs::create_directories(foreign);
  std::ofstream(foreign + "/thesis.tex") << "keep me";
  TrainedModel trained(lab.run("a"), "last", "cpu", 1);
  const auto accuracy = [&](int64_t draws, uint64_t seed) {
    const RecognitionOptions options{.heads = {"scratch"}, .labels = {20}, .draws = draws, .seed = seed};
    return recognise(trained, options, kSilent)[0].accuracy;
  };
  const double first = accuracy(1, 0), second = 2.0 * accuracy(2, 0) - first;
  CHECK(worker_count() == 1);
  CHECK(std::abs(accuracy(1, 1) - second) > 1e-9);  // the next seed's first draw is not this one's second
  unsetenv("TMPDIR");
  CHECK(fs::exists(foreign + "/thesis.tex"));
  CHECK(std::distance(fs::directory_iterator(temporary.path()), fs::directory_iterator()) == 1);
}

// Heads learn from the validation images too: all their labels are 80, and a net's own 64.
TEST_CASE("experiment: a net's own classifier stands beside the heads with the most labels", "[unit]") {
  const auto names = [](int64_t own_labels) {
    const Json report = parse_json(
        fmt::format("{{\"runs\": [{{\"training_images\": 64}}], \"recognition\": [{{\"group\": \"vq\", "
                    "\"feature\": \"z_q\", \"head\": \"knn\", \"labels\": 80, \"accuracy\": "
                    "{{\"mean\": 0.5, \"min\": 0.5, \"max\": 0.5, \"n\": 1}}}}], \"groups\": "
                    "[{{\"name\": \"twin\", \"classifier_labels\": {}, \"figures\": {{\"accuracy\": "
                    "{{\"mean\": 0.9, \"min\": 0.9, \"max\": 0.9, \"n\": 1}}}}}}]}}",
                    own_labels),
        "report");
    return recognition_pictures(report).at(0).svg;
  };
  CHECK(names(0).find("twin, own classifier") != std::string::npos);
  CHECK(names(10).find("twin, own classifier") == std::string::npos);
}

TEST_CASE("cli: SIGINT ends recognition that trains with a message and leaves nothing behind", "[cli]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("a") + "--json"));
  fs::create_directories(desk / "tmp");
  // A thousand draws are far longer than the wait.
  const std::string script = "TMPDIR=" + (desk / "tmp") + " " + VQLAB_BINARY + " recognise " + (desk / "a") +
                             " --head finetune --labels 20 --draws 1000 --json >" + (desk / "out") + " 2>" +
                             (desk / "err") + " & p=$!; for i in $(seq 200); do [ -n \"$(ls " +
                             (desk / "tmp") +
                             ")\" ] && break; sleep 0.05; done; "
                             "kill -INT $p; wait $p; exit $?";
  const int status = std::system(("bash -c '" + script + "'").c_str());
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
  std::ifstream file(desk / "err");
  const std::string err((std::istreambuf_iterator<char>(file)), {});
  INFO(err);
  CHECK(err.find("error: stopped by SIGINT") != std::string::npos);
  CHECK(err.find("hint: run the command again") != std::string::npos);
  CHECK(fs::is_empty(desk / "tmp"));
}

TEST_CASE("cli: the untrained encoder is asked for its features alone", "[cli]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("a") + "--json"));
  const CommandResult result =
      run_vqlab("recognise " + (desk / "a") +
                " --features pixels --head knn,scratch --labels 20 --draws 1 --untrained --json");
  const Json json = json_of(result);
  REQUIRE(json.at("rows").items().size() == 3);
  CHECK(json.at("rows").items()[2].at("feature").as_string() == "enc_h, untrained");
  CHECK(count_of(result.err, "image, scratch") == 1);
}

TEST_CASE("cli: pictures of another size and options of the comparison are no prediction", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("a") + "--json"));
  const std::vector<uint8_t> pixels(80, 100);
  write_png(desk / "new.png", {pixels.data(), {8, 8, 1}});
  write_png(desk / "tall.png", {pixels.data(), {10, 8, 1}});
  const std::string recognise = "recognise " + (desk / "a") + " ";
  require_failure(
      run_vqlab(recognise + "--predict " + (desk / "new.png") + " --predict " + (desk / "tall.png")), 3,
      "the picture has 10 x 8 pixels, the model was trained on 8 x 8 (" + (desk / "tall.png") + ")",
      "resize it first");
  CHECK_FALSE(fs::exists(desk / "a/head-dec_h.safetensors"));  // said before a head is fitted
  for (const char* other :
       {"--head knn", "--labels 20", "--untrained", "-o pictures", "--features z_q,dec_h"})
    require_failure(run_vqlab(recognise + other + " --predict " + (desk / "new.png")), 2,
                    "--predict uses a logistic head on one feature", "leave out");
}

}  // namespace vqlab::testing
