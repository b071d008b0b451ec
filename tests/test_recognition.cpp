// Features, heads and the protocol of recognition.
#include <rapidcheck.h>

#include <cmath>
#include <numeric>
#include <set>

#include "desk.hpp"
#include "engine/data/labels.hpp"
#include "engine/io/png.hpp"
#include "engine/recognition/confusion.hpp"
#include "engine/recognition/head.hpp"
#include "engine/recognition/knn.hpp"
#include "engine/recognition/mlp.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

FeatureMatrix random_features(int64_t rows, int64_t dims, uint64_t seed) {
  return {.rows = rows, .dims = dims, .values = normal_floats(rows * dims, seed)};
}

// Classes by the largest of the first features, which a linear head can tell.
std::vector<int32_t> linear_labels(const FeatureMatrix& features, int64_t classes) {
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < features.rows; ++i)
    labels.push_back(int32_t(std::max_element(features.row(i), features.row(i) + classes) - features.row(i)));
  return labels;
}

double share_equal(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  int64_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i];
  return double(equal) / double(a.size());
}

const auto kSilent = [](const std::string&) {};

}  // namespace

TEST_CASE("labels: a draw has equally many of each class, each place once", "[unit]") {
  CHECK(rc::check([] {
    const int64_t classes = *rc::gen::inRange(2, 8);
    std::vector<int32_t> labels;
    for (int64_t i = 0; i < classes * 20; ++i) labels.push_back(int32_t(i * 7 % classes));
    std::vector<int64_t> of_class(static_cast<size_t>(classes));
    for (const int32_t label : labels) ++of_class[size_t(label)];
    const int64_t most = *std::min_element(of_class.begin(), of_class.end()) * classes;
    if (most == 0) return;
    const int64_t count = *rc::gen::inRange<int64_t>(1, most + 1);
    const auto places = draw_labelled(labels, classes, count, 3, 0);
    RC_ASSERT(int64_t(places.size()) == count);
    RC_ASSERT(std::set<int64_t>(places.begin(), places.end()).size() == places.size());
    std::vector<int64_t> drawn(static_cast<size_t>(classes));
    for (const int64_t place : places) ++drawn[size_t(labels[size_t(place)])];
    RC_ASSERT(*std::max_element(drawn.begin(), drawn.end()) - *std::min_element(drawn.begin(), drawn.end()) <=
              1);
    RC_ASSERT(draw_labelled(labels, classes, count, 3, 0) == places);
  }));
}

// 8 x 8 pixels, brightness rising by 10 of 255 a pixel to the right: gradients of 20 / 255 along x where
// there are two neighbours, all in the first bin. Four cells of 16 pixels, the outer columns without
// gradient: 12 pixels each.
TEST_CASE("hog: a ramp has one orientation", "[unit]") {
  std::vector<uint8_t> image(64);
  for (size_t i = 0; i < image.size(); ++i) image[i] = uint8_t(10 * (i % 8));
  REQUIRE(hog_dims(8, 8) == 36);
  CHECK(hog_dims(28, 28) == 1296);
  CHECK(hog_dims(7, 28) == 0);
  std::vector<float> features(36);
  hog(image.data(), 8, 8, 1, features.data());
  // Four equal entries of a block of length 1 are 0.5, clipped to 0.2, and 0.5 again.
  std::vector<double> expected(36, 0.0);
  for (size_t cell = 0; cell < 4; ++cell) expected[cell * 9] = 0.5;
  require_close(View<const float>(features.data(), {36}), expected, 1e-6, "hog of a ramp");
}

TEST_CASE("knn: equals brute force, ties included", "[unit]") {
  const Runtime runtime("cpu", 0);
  FeatureMatrix training = random_features(700, 5, 1);
  for (float& value : training.values) value = std::round(2.0f * value);  // many equal distances
  FeatureMatrix queries = random_features(60, 5, 2);
  for (float& value : queries.values) value = std::round(2.0f * value);
  std::vector<int32_t> labels;
  for (int32_t i = 0; i < 700; ++i) labels.push_back(i * 5 % 7);
  const std::vector<int32_t> found = nearest_neighbours(runtime, training, labels, queries, 5);
  for (int64_t q = 0; q < queries.rows; ++q) {
    std::vector<std::pair<double, int64_t>> all;
    for (int64_t i = 0; i < training.rows; ++i) {
      double distance = 0.0;
      for (int64_t d = 0; d < 5; ++d) distance += std::pow(double(queries.row(q)[d] - training.row(i)[d]), 2);
      all.emplace_back(distance, i);
    }
    std::sort(all.begin(), all.end());
    std::vector<int> votes(7);
    for (int n = 0; n < 5; ++n) ++votes[size_t(labels[size_t(all[size_t(n)].second)])];
    const int most = *std::max_element(votes.begin(), votes.end());
    int32_t expected = -1;
    for (int n = 4; n >= 0; --n)
      if (const int32_t label = labels[size_t(all[size_t(n)].second)]; votes[size_t(label)] == most)
        expected = label;
    INFO("query " << q);
    CHECK(found[size_t(q)] == expected);
  }
  require_error(ErrorKind::usage, "5 neighbours of 3 labelled images", "knn", [&] {
    nearest_neighbours(runtime, random_features(3, 5, 1), {0, 1, 0}, queries, 5);
  });
}

// Central differences of the loss in fp32: rounding 6e-8 / h with h = 1e-2 and a loss of order 1.
TEST_CASE("logistic: the gradient equals differences of the loss", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix features = random_features(100, 6, 1);
  std::vector<int32_t> labels = linear_labels(features, 3);
  labels[7] = -1;
  LogisticProblem problem(runtime, features, 3);
  LinearModel model(3, 6);
  model.values = normal_floats(21, 2);
  std::vector<float> gradient, ignored;
  problem.loss(model, labels, gradient);
  for (size_t i = 0; i < model.values.size(); ++i) {
    LinearModel up = model, down = model;
    up.values[i] += 1e-2f;
    down.values[i] -= 1e-2f;
    const double difference =
        (problem.loss(up, labels, ignored) - problem.loss(down, labels, ignored)) / 2e-2;
    CHECK(std::abs(double(gradient[i]) - difference) <= 2e-4);
  }
}

// The optimum of loss + l2 / 2 |w|^2 has a gradient of 0: the data's against the penalty's.
TEST_CASE("logistic: the fit ends at the optimum, and a stronger penalty gives smaller weights", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix features = random_features(300, 6, 1);
  const std::vector<int32_t> labels = linear_labels(features, 3);
  LogisticProblem problem(runtime, features, 3);
  double last_norm = 0.0;
  for (const double l2 : {1.0, 0.1, 0.01}) {
    LinearModel model(3, 6);
    fit_logistic(problem, labels, l2, model, 500);
    std::vector<float> gradient;
    problem.loss(model, labels, gradient);
    double norm = 0.0;
    for (size_t i = 0; i < 18; ++i) {
      CHECK(std::abs(double(gradient[i]) + l2 * double(model.values[i])) <= 5e-3);
      norm += double(model.values[i]) * double(model.values[i]);
    }
    CHECK(norm > last_norm);
    last_norm = norm;
  }
}

// Six features that are almost one: the Hessian's eigenvalues lie 1e4 apart.
TEST_CASE("logistic: with second moments ill-conditioned features need few iterations", "[unit]") {
  const Runtime runtime("cpu", 0);
  FeatureMatrix features = random_features(300, 6, 1);
  const std::vector<int32_t> labels = linear_labels(features, 3);
  for (int64_t i = 0; i < 300; ++i)
    for (int64_t d = 1; d < 6; ++d) {
      float& value = features.values[size_t(i * 6 + d)];
      value = features.row(i)[0] + 0.02f * value;
    }
  LogisticProblem problem(runtime, features, 3);

  const std::vector<float> moments = problem.second_moments();
  for (int64_t a = 0; a < 6; ++a)
    for (int64_t b = 0; b < 6; ++b) {
      double sum = 0.0, absolute = 0.0;
      for (int64_t i = 0; i < 300; ++i) {
        const double product = double(features.row(i)[a]) * double(features.row(i)[b]);
        sum += product / 300.0;
        absolute += std::abs(product) / 300.0;
      }
      // A sum of 300 terms in fp32, each rounded once.
      CHECK(std::abs(double(moments[size_t(a * 6 + b)]) - sum) <= 300 * 6e-8 * absolute);
    }

  const auto loss_after = [&](int iterations, const std::vector<float>& given) {
    constexpr double kL2 = 1e-6;
    LinearModel model(3, 6);
    fit_logistic(problem, labels, kL2, model, iterations, given);
    std::vector<float> gradient;
    double loss = problem.loss(model, labels, gradient);
    for (size_t i = 0; i < 18; ++i) loss += 0.5 * kL2 * double(model.values[i]) * double(model.values[i]);
    return loss;
  };
  const double optimum = loss_after(2000, moments), short_walk = loss_after(15, moments),
               without = loss_after(15, {});
  INFO("optimum " << optimum << ", 15 iterations " << short_walk << ", without the moments " << without);
  CHECK(short_walk - optimum <= 0.1 * (without - optimum));
}

TEST_CASE("logistic: recognises what is linear, whatever the scale, and repeats bit for bit", "[unit]") {
  const Runtime runtime("cpu", 0);
  FeatureMatrix training = random_features(2500, 8, 1), test = random_features(500, 8, 2);
  const std::vector<int32_t> labels = linear_labels(training, 4), expected = linear_labels(test, 4);
  for (FeatureMatrix* matrix : {&training, &test})
    for (int64_t i = 0; i < matrix->rows; ++i) {
      matrix->values[size_t(i * 8)] = 1e4f * matrix->values[size_t(i * 8)] + 3e4f;
      matrix->values[size_t(i * 8 + 7)] = 5.0f;  // constant
    }
  const Standardiser standardiser(training);
  CHECK(standardiser.scale[7] == 0.0f);
  standardiser.apply(training);
  standardiser.apply(test);
  const LogisticFit fit = fit_with_chosen_l2(runtime, training, labels, 4, 0);
  CHECK(share_equal(largest_logits(LogisticProblem(runtime, test, 4).logits(fit.model), 4), expected) >=
        0.95);
  CHECK(fit_with_chosen_l2(runtime, training, labels, 4, 0).model.values == fit.model.values);
}

TEST_CASE("mlp: learns what is not linear, and repeats bit for bit", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix training = random_features(600, 4, 1), test = random_features(200, 4, 2);
  const auto quadrant = [](const FeatureMatrix& m) {
    std::vector<int32_t> labels;
    for (int64_t i = 0; i < m.rows; ++i) labels.push_back((m.row(i)[0] > 0.0f) != (m.row(i)[1] > 0.0f));
    return labels;
  };
  const MlpOptions options{.hidden = 32, .dropout = 0.1, .learning_rate = 1e-2, .epochs = 40};
  const auto found = recognise_with_mlp(runtime, training, quadrant(training), test, 2, options, 0);
  CHECK(share_equal(found, quadrant(test)) >= 0.9);
  CHECK(recognise_with_mlp(runtime, training, quadrant(training), test, 2, options, 0) == found);
}

TEST_CASE("features: are what the model computes", "[unit]") {
  Lab lab;
  lab.train("a");
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const ImageSet set = load_image_set("idx", lab.data(), Split::train);
  const ImageRange range{&set, 0, set.count};
  std::vector<std::string> names;
  for (const FeatureEntry& feature : feature_table()) names.emplace_back(feature.name);
  names.erase(
      std::find(names.begin(), names.end(), "hog"));  // too small images for hog's blocks are its own case
  const std::vector<FeatureMatrix> all = extract_features(trained, range, names);
  const auto of = [&](const char* name) -> const FeatureMatrix& {
    return all[size_t(std::find(names.begin(), names.end(), name) - names.begin())];
  };
  const std::vector<float> codebook = to_host(trained.model().quantizer().codebook(), trained.runtime());
  const int64_t K = 16, D = 4, places = 4;
  CHECK(of("z_e").dims == places * D);
  CHECK(of("enc_h").dims == places * 8);
  CHECK(of("dec_h").dims == places * 8);
  CHECK(of("pyramid").dims == 5 * K);
  for (int64_t i = 0; i < set.count; ++i) {
    double squares = 0.0;
    for (int64_t k = 0; k < K; ++k) squares += std::pow(double(of("histogram").row(i)[k]), 2);
    CHECK(std::abs(squares - double(places)) <= 1e-5);
    for (int64_t place = 0; place < places; ++place) {
      const float* hot = of("onehot").row(i) + place * K;
      const auto code = std::max_element(hot, hot + K) - hot;
      CHECK(std::accumulate(hot, hot + K, 0.0f) == 1.0f);
      for (int64_t d = 0; d < D; ++d)
        CHECK(of("z_q").row(i)[place * D + d] == codebook[size_t(code * D + d)]);
    }
  }
  CHECK(of("pixels").row(2)[5] == float(set.pixels[2 * 64 + 5]) / 255.0f);
  require_error(ErrorKind::usage, "unknown feature 'dec_g'", "--features", [&] { find_feature("dec_g"); });
}

TEST_CASE("recognition: far above chance from pixels and from codes, and what is wrong is said", "[unit]") {
  Lab lab(336);
  lab.train("a", {"train.epochs=6", "train.learning_rate=0.004"});
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const auto rows = recognise(
      trained, {.features = {"pixels", "dec_h"}, .heads = {"logistic", "knn"}, .labels = {50, 0}}, kSilent);
  REQUIRE(rows.size() == 8);
  for (const RecognitionRow& row : rows) {
    INFO(row.feature << " " << row.head << " " << row.labels);
    CHECK(row.draws == (row.labels == 50 ? 5 : 1));
    CHECK(row.accuracy >= 0.4);
    CHECK(row.accuracy_min <= row.accuracy);
    CHECK(row.accuracy <= row.accuracy_max);
    CHECK(row.predictions.size() == 24);
  }
  const auto refuse = [&](const std::string& what, const std::string& where,
                          const RecognitionOptions& options) {
    require_error(ErrorKind::usage, what, where, [&] { recognise(trained, options, kSilent); });
  };
  refuse("unknown head 'svm'", "--head", {.heads = {"svm"}});
  refuse("unknown feature 'z'", "--features", {.features = {"z"}});
  refuse("400 labels of 336 training images", "--labels", {.labels = {400}});
}

TEST_CASE("recognition: fine-tuning and training from scratch start where they say", "[unit]") {
  Lab lab(176);
  lab.train("a", {"quantizer.gradient=rotation"});
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const auto rows =
      recognise(trained, {.heads = {"finetune", "scratch"}, .labels = {100}, .draws = 1}, kSilent);
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].head == "finetune");
  CHECK(rows[0].accuracy >= 0.4);
  CHECK(rows[0].predictions != rows[1].predictions);
}

TEST_CASE("recognition: a fitted head recognises new images, of its own run alone", "[unit]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("a") + "--json"));
  json_of(run_vqlab(desk.train("b") + "--seed 1 --json"));
  const ImageSet test = load_image_set("idx", desk / "data", Split::test);
  write_png(desk / "new.png", {test.pixels.data(), {8, 8, 1}});
  const Json json =
      json_of(run_vqlab("recognise " + (desk / "a") + " --json --quiet --predict " + (desk / "new.png")));
  const Json& prediction = json.at("predictions").items()[0];
  require_keys(prediction, {"image", "class", "probabilities"});
  double sum = 0.0;
  for (const auto& [name, value] : prediction.at("probabilities").members()) sum += value.as_number();
  CHECK(std::abs(sum - 1.0) <= 1e-5);
  std::filesystem::copy(desk / "a/head-dec_h.safetensors", desk / "b/head-dec_h.safetensors");
  require_failure(run_vqlab("recognise " + (desk / "b") + " --predict " + (desk / "new.png")), 3,
                  "fitted to the features of other weights", "pass the run that it belongs to");
  std::filesystem::resize_file(desk / "a/head-dec_h.safetensors", 100);
  CHECK(run_vqlab("recognise " + (desk / "a") + " --predict " + (desk / "new.png")).exit_code != 0);
  std::ofstream(desk / "no.png") << "no picture";
  require_failure(run_vqlab("recognise " + (desk / "b") + " --features z_q --predict " + (desk / "no.png")),
                  3, "Not a PNG file", "pass a PNG picture");
}

TEST_CASE("cli: recognise prints a table and writes pictures", "[cli]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("a") + "--json"));
  const Json json =
      json_of(run_vqlab("recognise " + (desk / "a") + " --features z_q,pixels --head knn --labels 20,all " +
                        "--untrained --json -o " + (desk / "out")));
  CHECK(json.at("rows").items().size() == 6);
  for (const Json& row : json.at("rows").items())
    require_keys(row, {"feature", "head", "labels", "draws", "accuracy", "accuracy_min", "accuracy_max"});
  CHECK(json.at("rows").items()[5].at("feature").as_string() == "enc_h, untrained");
  const auto& counts = json.at("confusion").at("counts").items();
  REQUIRE(counts.size() == 100);
  int64_t images = 0;
  for (const Json& count : counts) images += count.as_integer();
  CHECK(images == 24);
  CHECK(std::filesystem::exists(desk / "out/confusion.png"));
  const CommandResult table = run_vqlab("recognise " + (desk / "a") + " --head knn");
  CHECK(table.out.find("dec_h") != std::string::npos);
  require_failure(run_vqlab("recognise " + (desk / "a") + " --labels many"), 2,
                  "'many' is no number of labels", "--labels");
  require_failure(run_vqlab("recognise " + (desk / "a") + " --features z_q,,pixels"), 2, "an empty entry",
                  "single commas");
}

TEST_CASE("confusion: counts and the worst pairs", "[unit]") {
  const auto counts = confusion_counts({0, 0, 1, 1, 1, 2}, {0, 1, 0, 0, 1, 2}, 3);
  CHECK(counts == std::vector<int64_t>{1, 1, 0, 2, 1, 0, 0, 0, 1});
  const auto worst = worst_confusions(counts, 3, 5);
  REQUIRE(worst.size() == 2);
  CHECK((worst[0].label == 1 && worst[0].found == 0 && worst[0].images == 2));
}

}  // namespace vqlab::testing
