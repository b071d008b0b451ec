// What the features are made of, and what recognition refuses.
#include <cmath>
#include <limits>

#include "engine/inference.hpp"
#include "engine/recognition/head.hpp"
#include "engine/recognition/knn.hpp"
#include "engine/recognition/mlp.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

const auto kSilent = [](const std::string&) {};
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

// A run on colour images of 10 x 14 pixels: 3 x 4 codes, K = 16, D = 4, hidden 8.
struct FeatureLab {
  Lab lab{80, 10, 14, 3};
  ImageSet set;
  std::unique_ptr<TrainedModel> trained;

  explicit FeatureLab(const std::vector<std::string>& set_keys = {}) {
    lab.train("a", set_keys);
    set = load_image_set("idx", lab.data(), Split::train);
    trained = std::make_unique<TrainedModel>(lab.run("a"), "last", "cpu", 0);
  }
  FeatureMatrix features(const std::string& name, const ImageRange& range) {
    return std::move(extract_features(*trained, range, {name})[0]);
  }
  FeatureMatrix features(const std::string& name) { return features(name, {&set, 0, set.count}); }
};

}  // namespace

TEST_CASE("features: the parts of a code's features agree", "[unit]") {
  FeatureLab f;
  const int64_t K = 16, h = 3, w = 4;
  const std::vector<int32_t> codes = encode_images(*f.trained, {&f.set, 0, f.set.count});
  const FeatureMatrix onehot = f.features("onehot"), histogram = f.features("histogram"),
                      pyramid = f.features("pyramid");
  REQUIRE(onehot.dims == h * w * K);
  REQUIRE(pyramid.dims == 5 * K);
  for (int64_t i = 0; i < f.set.count; ++i) {
    std::vector<float> hot(size_t(onehot.dims)), counts(size_t(pyramid.dims));
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) {
        const int32_t code = codes[size_t((i * h + y) * w + x)];
        hot[size_t((y * w + x) * K + code)] = 1.0f;
        ++counts[size_t(code)];
        // Of three rows the upper two are in the upper half; of four columns, two in each.
        ++counts[size_t((1 + (y == 2 ? 2 : 0) + (x >= 2 ? 1 : 0)) * K + code)];
      }
    CHECK(std::vector<float>(onehot.row(i), onehot.row(i) + onehot.dims) == hot);
    for (int64_t d = 0; d < pyramid.dims; ++d)
      if (pyramid.row(i)[d] != std::sqrt(counts[size_t(d)])) FAIL("pyramid " << d << " of image " << i);
    for (int64_t d = 0; d < K; ++d) CHECK(histogram.row(i)[d] == pyramid.row(i)[d]);
  }
}

TEST_CASE("features: maps of the net are those of its halves", "[unit]") {
  FeatureLab f;
  Model& model = f.trained->model();
  const Runtime& runtime = f.trained->runtime();
  const int64_t places = 12, hidden = 8, D = 4;
  const FeatureMatrix enc_h = f.features("enc_h"), z_e = f.features("z_e"), dec_h = f.features("dec_h");
  // z_e is the 1x1 convolution of enc_h: nine floats are added.
  const ParameterStore& p = model.parameters();
  const View<float> weight = p.weight(p.find("quant_conv.weight")),
                    bias = p.weight(p.find("quant_conv.bias"));
  for (int64_t i = 0; i < f.set.count; ++i)
    for (int64_t place = 0; place < places; ++place)
      for (int64_t d = 0; d < D; ++d) {
        double sum = double(bias.data[d]), size = std::abs(sum);
        for (int64_t c = 0; c < hidden; ++c) {
          const double term = double(weight.data[d * hidden + c]) * double(enc_h.row(i)[place * hidden + c]);
          sum += term;
          size += std::abs(term);
        }
        if (!(std::abs(double(z_e.row(i)[place * D + d]) - sum) <= 9 * 6e-8 * size)) FAIL("z_e of " << i);
      }
  for (const float value : enc_h.values) CHECK(value >= 0.0f);  // behind a ReLU
  // dec_h follows from the codes alone.
  const std::vector<int32_t> codes = encode_images(*f.trained, {&f.set, 0, model.batch()});
  std::vector<float> noise = normal_floats(model.latents().size(), 1);
  runtime.upload(const_cast<float*>(model.latents().data), noise.data(), model.latents().bytes(),
                 runtime.compute());
  runtime.upload(model.quantizer().codes().data, codes.data(), model.quantizer().codes().bytes(),
                 runtime.compute());
  model.quantizer().decode(runtime.compute());
  model.decode_hidden(runtime.compute());
  CHECK(to_host(model.decoder_hidden(), runtime) ==
        std::vector<float>(dec_h.row(0), dec_h.row(model.batch())));
}

TEST_CASE("features: rows follow the range, whatever the batches", "[unit]") {
  FeatureLab f;
  const std::vector<int64_t> only = {79, 5, 40};
  for (const char* name : {"pixels", "hog", "z_q", "histogram", "dec_h"}) {
    INFO(name);
    const FeatureMatrix all = f.features(name), part = f.features(name, {&f.set, 62, 80}),
                        some = f.features(name, {&f.set, 0, 80, &only});
    REQUIRE(part.rows == 18);
    CHECK(part.values == std::vector<float>(all.row(62), all.row(80)));
    REQUIRE(some.rows == 3);
    for (int64_t i = 0; i < 3; ++i)
      CHECK(std::equal(some.row(i), some.row(i) + some.dims, all.row(only[size_t(i)])));
  }
}

// Steps to the right of 10, 10, 10, 1, 1, 1 and 1 of 255: differences of neighbours across are 20, 20 and 11
// in the left cells, 2, 2 and 2 in the right ones. Of the block (204, 24, 204, 24) the length is 290.5;
// 0.7023 is clipped to 0.2, 0.0826 is not, and what is left has the length 0.3060.
TEST_CASE("hog: a block is clipped between two normalisations", "[unit]") {
  std::vector<uint8_t> image;
  for (int y = 0; y < 8; ++y)
    for (const int value : {0, 10, 20, 30, 31, 32, 33, 34}) image.push_back(uint8_t(value));
  std::vector<float> features(36);
  hog(image.data(), 8, 8, 1, features.data());
  for (size_t i = 0; i < 36; ++i) {
    const double expected = i % 9 != 0 ? 0.0 : i / 9 % 2 == 0 ? 0.65356 : 0.26996;
    CHECK(std::abs(double(features[i]) - expected) <= 1e-4);
  }
}

TEST_CASE("hog: an orientation has no sign", "[unit]") {
  for (const bool across : {true, false}) {
    std::vector<uint8_t> rising, falling;
    for (int i = 0; i < 64; ++i) {
      rising.push_back(uint8_t(10 * (across ? i % 8 : i / 8)));
      falling.push_back(uint8_t(70 - rising.back()));
    }
    std::vector<float> up(36), down(36);
    hog(rising.data(), 8, 8, 1, up.data());
    hog(falling.data(), 8, 8, 1, down.data());
    for (size_t i = 0; i < 36; ++i) CHECK(std::abs(up[i] - down[i]) <= 1e-5f);
  }
}

// Of the three channels the last has the steepest gradient, upwards 90 of 255 a row: bin 4 of 9, [80, 100)
// degrees. 8 x 8 pixels, no gradient in the first and the last row: 12 pixels of 180 / 255 in each cell.
TEST_CASE("hog: the steepest channel counts, and what fills no cell does not", "[unit]") {
  const auto image = [](int64_t side) {
    std::vector<uint8_t> pixels;
    for (int64_t y = 0; y < side; ++y)
      for (int64_t x = 0; x < side; ++x)
        for (const int64_t value : {x * 5, int64_t(0), (y % 8) * 30}) pixels.push_back(uint8_t(value));
    return pixels;
  };
  std::vector<float> features(36);
  hog(image(8).data(), 8, 8, 3, features.data());
  for (size_t cell = 0; cell < 4; ++cell)
    for (size_t bin = 0; bin < 9; ++bin)
      if (bin != 0) CHECK(std::abs(features[cell * 9 + bin] - (bin == 4 ? 0.5f : 0.0f)) <= 0.05f);
  CHECK(hog_dims(11, 9) == 36);
  CHECK(hog_dims(12, 8) == 72);
  // A flat image has no orientation, and no NaN.
  const std::vector<uint8_t> flat(64, 100);
  hog(flat.data(), 8, 8, 1, features.data());
  CHECK(features == std::vector<float>(36, 0.0f));
}

TEST_CASE("features: values that are not finite are refused with the image", "[bad-input]") {
  FeatureLab f;
  const ParameterStore& p = f.trained->model().parameters();
  p.weight(p.find("decoder.conv1.bias")).data[0] = kNotANumber;
  require_error(ErrorKind::failed, "feature dec_h of image 0 is not finite", "dec_h",
                [&] { f.features("dec_h"); });
  CHECK(f.features("z_q").rows == 80);
  p.weight(p.find("encoder.conv1.bias")).data[0] = kNotANumber;
  require_error(ErrorKind::failed, "a latent of image 0 is not finite", "latent row 0",
                [&] { f.features("z_q"); });
}

TEST_CASE("features: what the model does not have is refused", "[bad-input]") {
  FeatureLab plain({"quantizer.kind=none", "loss.classifier_weight=1", "loss.reconstruction_weight=0"});
  const std::string where = plain.trained->checkpoint().directory();
  for (const char* name : {"onehot", "histogram", "pyramid"})
    require_error(ErrorKind::usage, std::string("feature ") + name + " needs codes", where,
                  [&] { plain.features(name); });
  require_error(ErrorKind::usage, "feature dec_h needs a decoder", where, [&] { plain.features("dec_h"); });
  CHECK(plain.features("enc_h").dims == 12 * 8);
  Lab tiny(80, 6, 6, 1);
  tiny.train("a");
  const ImageSet set = load_image_set("idx", tiny.data(), Split::train);
  TrainedModel trained(tiny.run("a"), "last", "cpu", 0);
  require_error(ErrorKind::usage, "too small for feature hog", "hog", [&] {
    extract_features(trained, {&set, 0, 80}, {"hog"});
  });
  try {
    find_feature("histgram");
    FAIL("found");
  } catch (const Error& error) {
    CHECK(error.hint().find("did you mean histogram?") != std::string::npos);
  }
}

// ---- heads ----

namespace {

// The objective of fit_logistic and its gradient, in double.
double objective(const FeatureMatrix& x, const std::vector<int32_t>& labels, int64_t C, double l2,
                 const std::vector<double>& values, std::vector<double>& gradient) {
  const int64_t D = x.dims;
  double loss = 0.0;
  gradient.assign(values.size(), 0.0);
  for (int64_t i = 0; i < x.rows; ++i) {
    std::vector<double> p(static_cast<size_t>(C));
    double sum = 0.0;
    for (int64_t c = 0; c < C; ++c) {
      double logit = values[size_t(C * D + c)];
      for (int64_t d = 0; d < D; ++d) logit += values[size_t(c * D + d)] * double(x.row(i)[d]);
      sum += p[size_t(c)] = std::exp(logit);
    }
    for (int64_t c = 0; c < C; ++c) {
      const double rest = p[size_t(c)] / sum - double(labels[size_t(i)] == c);
      gradient[size_t(C * D + c)] += rest / double(x.rows);
      for (int64_t d = 0; d < D; ++d)
        gradient[size_t(c * D + d)] += rest * double(x.row(i)[d]) / double(x.rows);
    }
    loss -= std::log(p[size_t(labels[size_t(i)])] / sum) / double(x.rows);
  }
  for (size_t i = 0; i < size_t(C * D); ++i) {
    loss += 0.5 * l2 * values[i] * values[i];
    gradient[i] += l2 * values[i];
  }
  return loss;
}

}  // namespace

// The fit ends when a step improves the loss by less than 1e-4 of it, at a place whose loss is that near.
TEST_CASE("logistic: the fit is as good as long gradient descent in double", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix x{.rows = 90, .dims = 3, .values = normal_floats(270, 1)};
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < 90; ++i)
    labels.push_back(x.row(i)[0] + 0.5f * x.row(i)[2] > 0.3f ? 2 : int32_t(i % 2));
  for (const double l2 : {0.3, 0.01}) {
    INFO("l2 " << l2);
    std::vector<double> values(12), gradient;
    for (int i = 0; i < 20000; ++i) {
      objective(x, labels, 3, l2, values, gradient);
      for (size_t k = 0; k < 12; ++k) values[k] -= 0.3 * gradient[k];
    }
    const double best = objective(x, labels, 3, l2, values, gradient);
    LogisticProblem problem(runtime, x, 3);
    LinearModel model(3, 3);
    fit_logistic(problem, labels, l2, model);
    const std::vector<double> fitted(model.values.begin(), model.values.end());
    const double loss = objective(x, labels, 3, l2, fitted, gradient);
    CHECK(loss >= best - 1e-6);
    CHECK(loss <= best * 1.001);
    for (size_t k = 0; k < 9; ++k) CHECK(std::abs(fitted[k] - values[k]) <= 0.05);
  }
}

TEST_CASE("logistic: rows without a label teach nothing, and few labels are enough for a fit", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix x{.rows = 70, .dims = 3, .values = normal_floats(210, 1)};
  const FeatureMatrix first{.rows = 40, .dims = 3, .values = {x.row(0), x.row(40)}};
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < 40; ++i) labels.push_back(x.row(i)[1] > 0.0f);
  LinearModel all(2, 3), part(2, 3);
  LogisticProblem of_first(runtime, first, 2), of_all(runtime, x, 2);
  fit_logistic(of_first, labels, 0.1, part);
  std::vector<int32_t> padded = labels;
  padded.resize(70, -1);
  fit_logistic(of_all, padded, 0.1, all);
  for (size_t i = 0; i < all.values.size(); ++i) CHECK(std::abs(all.values[i] - part.values[i]) <= 1e-3f);
  const FeatureMatrix two{.rows = 2, .dims = 3, .values = {1, 0, 0, -1, 0, 0}};
  const LogisticFit fit = fit_with_chosen_l2(runtime, two, {0, 1}, 2, 0);
  CHECK(largest_logits(LogisticProblem(runtime, two, 2).logits(fit.model), 2) == std::vector<int32_t>{0, 1});
  const FeatureMatrix one{.rows = 1, .dims = 3, .values = {1, 2, 3}};
  CHECK(fit_with_chosen_l2(runtime, one, {1}, 2, 0).model.values.size() == 8);
}

TEST_CASE("logistic: features get the mean 0 and the variance 1 of the training rows", "[unit]") {
  FeatureMatrix x{.rows = 4, .dims = 2, .values = {1, 5, 3, 5, 3, 5, 5, 5}};
  const Standardiser standardiser(x);
  CHECK(standardiser.mean == std::vector<float>{3, 5});
  standardiser.apply(x);
  const float side = std::sqrt(2.0f);  // 2 of a standard deviation of sqrt(2)
  for (const size_t i : {0u, 6u}) CHECK(std::abs(std::abs(x.values[i]) - side) <= 1e-6f);
  for (const size_t i : {1u, 2u, 3u, 4u, 5u, 7u}) CHECK(x.values[i] == 0.0f);
  FeatureMatrix other{.rows = 1, .dims = 2, .values = {3, 1000}};
  standardiser.apply(other);
  CHECK(other.values == std::vector<float>{0, 0});
}

// One nearest row is the row itself, wherever its piece; a vote of all rows is the most frequent class.
TEST_CASE("knn: one neighbour and all neighbours", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix x{.rows = 600, .dims = 19, .values = normal_floats(600 * 19, 3)};
  std::vector<int32_t> labels;
  for (int32_t i = 0; i < 600; ++i) labels.push_back(i % 5 == 0 ? 1 : i % 4 + 2);
  CHECK(nearest_neighbours(runtime, x, labels, x, 1) == labels);
  std::vector<int32_t> mostly(600, 3);
  for (size_t i = 0; i < 299; ++i) mostly[2 * i] = 8;
  CHECK(nearest_neighbours(runtime, x, mostly, x, 600) == std::vector<int32_t>(600, 3));
}

// Equal votes go to the class of the nearest row, equal distances to the first row.
TEST_CASE("knn: ties", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix x{.rows = 4, .dims = 1, .values = {2, -1, 1, -2}}, query{1, 1, {0}};
  CHECK(nearest_neighbours(runtime, x, {0, 1, 2, 3}, query, 4) == std::vector<int32_t>{1});
  CHECK(nearest_neighbours(runtime, x, {0, 1, 2, 0}, query, 4) == std::vector<int32_t>{0});
  CHECK(nearest_neighbours(runtime, x, {0, 1, 2, 3}, query, 1) == std::vector<int32_t>{1});
}

TEST_CASE("mlp: fewer rows than a batch, more queries than one, and another seed", "[unit]") {
  const Runtime runtime("cpu", 0);
  const FeatureMatrix x{.rows = 4, .dims = 2, .values = {2, 0, 0, 2, -2, 0, 0, -2}};
  FeatureMatrix queries{.rows = 9, .dims = 2, .values = {}};
  for (int64_t i = 0; i < 9; ++i)
    for (int64_t d = 0; d < 2; ++d) queries.values.push_back(1.5f * x.row(i % 4)[d]);
  const MlpOptions options{.hidden = 16, .dropout = 0.1, .least_steps = 200};
  CHECK(recognise_with_mlp(runtime, x, {0, 1, 2, 1}, queries, 3, options, 0) ==
        std::vector<int32_t>{0, 1, 2, 1, 0, 1, 2, 1, 0});
}

// ---- a head in a file ----

TEST_CASE("head: survives its file, and a damaged one is refused", "[unit][bad-input]") {
  FeatureLab f({"train.epochs=6", "train.learning_rate=0.004"});
  const RecognitionHead head = fit_head(*f.trained, "pixels", kSilent);
  CHECK(head.class_names[9] == "class 9");
  const std::string path = f.lab.run("head.safetensors"), sha = f.trained->checkpoint().weights_sha256();
  save_head(head, path);
  const RecognitionHead loaded = load_head(path, sha);
  CHECK(loaded.feature == "pixels");
  CHECK(loaded.class_names == head.class_names);
  CHECK(loaded.model.values == head.model.values);
  CHECK(loaded.standardiser.mean == head.standardiser.mean);
  CHECK(loaded.standardiser.scale == head.standardiser.scale);
  const ImageSet test = load_image_set("idx", f.lab.data(), Split::test);
  const std::vector<float> probabilities = predict(*f.trained, loaded, {&test, 0, test.count});
  REQUIRE(probabilities.size() == 240);
  int64_t correct = 0;
  for (size_t i = 0; i < 24; ++i) {
    const float* row = probabilities.data() + i * 10;
    double sum = 0.0;
    for (size_t c = 0; c < 10; ++c) sum += double(row[c]);
    CHECK(std::abs(sum - 1.0) <= 1e-6);
    correct += std::max_element(row, row + 10) - row == test.labels[i];
  }
  CHECK(correct >= 12);
  require_error(ErrorKind::data, "fitted to the features of other weights", path,
                [&] { load_head(path, "another"); });

  RecognitionHead unnamed = head;
  unnamed.class_names = {"only one"};
  save_head(unnamed, path);
  CHECK(load_head(path, sha).class_names.size() == 10);
  const auto size = std::filesystem::file_size(path);
  for (const uint64_t bytes : {uint64_t(0), uint64_t(20), uint64_t(size - 4)}) {
    INFO(bytes << " of " << size << " bytes");
    save_head(head, path);
    std::filesystem::resize_file(path, bytes);
    try {
      load_head(path, sha);
      FAIL("loaded");
    } catch (const Error& error) {
      CHECK(int(error.kind()) == int(ErrorKind::data));
      CHECK(error.where() == path);
      CHECK(error.hint().find("fitted again") != std::string::npos);
    }
  }
}

// ---- what recognise() refuses ----

TEST_CASE("recognition: labels that are missing, alike or unknown are refused", "[bad-input]") {
  Lab lab;
  lab.train("a");
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const auto refuse = [&](const std::string& what, const RecognitionOptions& options = {}) {
    require_error(ErrorKind::data, what, lab.data(), [&] { recognise(trained, options, kSilent); });
  };
  const ImageSet train = synthetic_images(80, 8, 8, 1, 1), test = synthetic_images(24, 8, 8, 1, 2);
  ImageSet other = test;
  other.labels[5] = 11;
  write_idx_set(lab.data(), train, other);
  refuse("picture 5 is of class 11, and training knew the classes 0 to 9");
  ImageSet alike = train;
  std::fill(alike.labels.begin(), alike.labels.end(), 3);
  write_idx_set(lab.data(), alike, test);
  refuse("all 80 pictures are of class 3");
  write_idx_set(lab.data(), synthetic_images(80, 8, 9, 1, 1), test);
  refuse("do not have the shape that the model was trained on");
  write_idx_set(lab.data(), train, test);
  std::filesystem::remove(lab.data() + "/t10k-labels-idx1-ubyte");
  refuse("recognition needs labels");
  std::filesystem::remove(lab.data() + "/train-labels-idx1-ubyte");
  refuse("recognition needs labels");
}

TEST_CASE("recognition: budgets that a class cannot fill are refused", "[bad-input]") {
  Lab lab;
  lab.train("a");
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  ImageSet train = synthetic_images(80, 8, 8, 1, 1);
  for (size_t i = 0; i < 80; ++i)
    if (train.labels[i] == 7 && i > 10) train.labels[i] = 8;
  write_idx_set(lab.data(), train, synthetic_images(24, 8, 8, 1, 2));
  require_error(ErrorKind::usage,
                "20 labels, equally many of each of 10 classes, are more than there are of "
                "class 7",
                "labels", [&] { recognise(trained, {.features = {"pixels"}, .labels = {20}}, kSilent); });
  // Fewer labels than neighbours.
  require_error(ErrorKind::usage, "5 neighbours of 4 labelled images", "knn", [&] {
    recognise(trained, {.features = {"pixels"}, .heads = {"knn"}, .labels = {4}}, kSilent);
  });
}

TEST_CASE("recognition: the same draws give the same classes, other seeds other draws", "[unit]") {
  Lab lab(176);
  lab.train("a");
  TrainedModel trained(lab.run("a"), "last", "cpu", 0);
  const auto found = [&](uint64_t seed) {
    std::vector<std::vector<int32_t>> classes;
    for (const RecognitionRow& row : recognise(
             trained,
             {.features = {"pixels"}, .heads = {"knn", "mlp"}, .labels = {20}, .draws = 1, .seed = seed},
             kSilent)) {
      int64_t correct = 0;
      for (size_t i = 0; i < 24; ++i) correct += row.predictions[i] == int32_t(i % 10);
      CHECK(row.accuracy == double(correct) / 24.0);
      classes.push_back(row.predictions);
    }
    return classes;
  };
  const auto first = found(0);
  CHECK(found(0) == first);
  CHECK(found(1)[0] != first[0]);
  CHECK(found(1)[1] != first[1]);
}

}  // namespace vqlab::testing
