// Configuration, memory, order of the data, evaluation.
#include <rapidcheck.h>

#include <cmath>
#include <set>

#include "engine/config.hpp"
#include "engine/evaluate.hpp"
#include "engine/pictures.hpp"
#include "engine/quality.hpp"
#include "engine/training.hpp"
#include "expect_error.hpp"
#include "synthetic.hpp"

namespace vqlab::testing {
namespace {

Config parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "test.toml", overrides);
}

void expect_usage_error(const std::string& text, const std::string& what, const std::string& hint) {
  try {
    parse(text);
    FAIL("accepted: " << text);
  } catch (const Error& error) {
    INFO(error.what() << " | " << error.hint() << " | " << error.where());
    CHECK(int(error.kind()) == int(ErrorKind::usage));
    CHECK(std::string(error.what()).find(what) != std::string::npos);
    CHECK(error.hint().find(hint) != std::string::npos);
    CHECK(error.where().starts_with("test.toml"));
  }
}

}  // namespace

TEST_CASE("config: every key survives printing and reading", "[unit]") {
  Config config = parse(
      "", {"seed=7", "quantizer.dim=3", "train.learning_rate=0.125", "data.flip=true", "name=a \"b\" \\c"});
  CHECK(config.seed == 7);
  CHECK(config.name == "a \"b\" \\c");
  const Config again = parse(to_toml(config));
  CHECK(differing_keys(config, again, {}).empty());
  const Config grid = parse("", {"quantizer.kind=fsq", "quantizer.levels=[7, 5]"});
  CHECK(grid.quantizer.codebook_size == 35);
  CHECK(grid.quantizer.dim == 2);
  CHECK(differing_keys(grid, parse(to_toml(grid)), {}).empty());
  CHECK(differing_keys(grid, parse("", {"quantizer.kind=fsq", "quantizer.levels=[5, 7]"}), {}) ==
        std::vector<std::string>{"quantizer.levels"});
  CHECK(differing_keys(config, parse(""), {"seed", "name"}) ==
        std::vector<std::string>{"data.flip", "quantizer.dim", "train.learning_rate"});
}

TEST_CASE("config: the complete documented file is accepted", "[unit]") {
  const Config c = parse(R"(
name = "fmnist-s"
seed = 0
device = "auto"
threads = 0
[data]
kind = "idx"
path = "/usr/share/datasets/fashion-mnist"
validation = 5000
flip = false
shift = 0
[model]
hidden = 32
residual_blocks = 2
residual_hidden = 32
downsampling = 4
norm = "none"
[quantizer]
kind = "vq_ema"
codebook_size = 256
dim = 16
levels = [8, 6, 5]
decay = 0.99
initialisation = "kmeans"
restart_threshold = 0.1
restart_every = 5
gradient = "straight_through"
[loss]
reconstruction = "mse_over_variance"
quantizer_weight = 1.0
codebook_weight = 1.0
commitment_weight = 0.25
[train]
epochs = 5
batch_size = 128
learning_rate = 1e-3
schedule = "constant"
precision = "fp32"
gradient_clip = 0.0
on_nan = "stop"
patience = 0
[evaluate]
every_epochs = 1
[checkpoint]
every_steps = 200
keep = 2
)");
  Config defaults;
  defaults.name = "fmnist-s";
  CHECK(differing_keys(c, defaults, {}).empty());
}

TEST_CASE("config: an unknown key gets the nearest valid one", "[bad-input]") {
  expect_usage_error("[train]\nepoch = 3", "unknown key train.epoch", "train.epochs");
  expect_usage_error("codebook_size = 3", "unknown key codebook_size", "quantizer.codebook_size");
  expect_usage_error("[quantiser]\ndim = 3", "unknown key quantiser", "quantizer");
}

TEST_CASE("config: impossible values are refused with the range", "[bad-input]") {
  expect_usage_error("[train]\nbatch_size = 0", "train.batch_size = 0 is out of range", "from 1 to 65536");
  expect_usage_error("[quantizer]\ndecay = 1.0", "quantizer.decay = 1 is out of range", "0.99");
  expect_usage_error("[quantizer]\ndecay = nan", "out of range", "choose a value");
  expect_usage_error("[model]\ndownsampling = 6", "no power of two", "2, 4, 8 or 16");
  expect_usage_error("[model]\nhidden = 33", "is odd", "even");
  expect_usage_error("[quantizer]\nkind = \"vq-ema\"", "is not known", "choose one of vq_ema");
  expect_usage_error("[quantizer]\nlevels = [8, 1]", "quantizer.levels = 1 is out of range",
                     "from 2 to 1000");
  expect_usage_error("[quantizer]\nlevels = [256, 256, 257]", "more than 16777216 codes", "fewer or smaller");
  expect_usage_error("[quantizer]\nlevels = [2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2]", "17 dimensions",
                     "at most 16");
  for (const char* kind : {"fsq", "none"})
    expect_usage_error(std::string("[quantizer]\ngradient = \"rotation\"\nkind = \"") + kind + "\"",
                       "codes of a learned codebook", "straight_through");
  expect_usage_error("[train]\nlearning_rate = 0.0", "trains nothing", "positive");
  expect_usage_error("[train]\nwarmup_steps = 5", "belongs to the cosine", "cosine");
  expect_usage_error("[train]\npatience = 2\n[data]\nvalidation = 0", "patience", "validation");
}

TEST_CASE("config: a value of the wrong type is refused", "[bad-input]") {
  expect_usage_error("[train]\nepochs = \"five\"", "train.epochs must be an integer", "train.epochs");
  expect_usage_error("[train]\nepochs = 2.5", "must be an integer", "train.epochs");
  expect_usage_error("[data]\nflip = 1", "must be true or false", "data.flip");
  for (const char* levels : {"8", "[]", "[8, 6.5]", "[[8]]", "\"8\""})
    expect_usage_error(std::string("[quantizer]\nlevels = ") + levels, "must be a list of integers",
                       "levels");
  expect_usage_error("data = 3", "data is a section", "[data]");
}

TEST_CASE("config: malformed TOML names the line", "[bad-input]") {
  try {
    parse("name = \"a\"\nseed = = 3\n");
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.where() == "test.toml:2");
  }
}

TEST_CASE("config: a malformed override is refused", "[bad-input]") {
  CHECK_THROWS_AS(parse("", {"train.epochs"}), Error);
  CHECK_THROWS_AS(parse("", {"train.epochs=many"}), Error);
  CHECK_THROWS_AS(parse("", {"=3"}), Error);
}

TEST_CASE("memory: both passes of a plan agree and parts are aligned", "[unit]") {
  const Runtime runtime("cpu", 1);
  Slab slab("test");
  const auto plan = [&] {
    slab.take<uint8_t>({3});
    return slab.take<float>({2, 5});
  };
  CHECK(plan().data == nullptr);
  slab.allocate(runtime);
  const View<float> part = plan();
  REQUIRE(part.data != nullptr);
  CHECK(reinterpret_cast<uintptr_t>(part.data) % 256 == 0);
  CHECK(part.data[9] == 0.0f);
  CHECK_THROWS_AS(slab.take<float>({1000}), Error);
}

TEST_CASE("memory: the largest batch fits and the next does not", "[unit]") {
  Config config = parse(tiny_config("unused"));
  const ImageShape shape{8, 8, 1};
  const auto bytes = [&](int64_t batch) {
    config.train.batch_size = batch;
    int64_t total = 0;
    for (const auto& [name, part] :
         Model(config, shape, batch, 100, Mode::training).memory_budget(Device::cpu))
      total += part;
    return total;
  };
  const int64_t limit = 3 << 20, batch = largest_batch(config, shape, 100, Device::cpu, limit);
  REQUIRE(batch > 0);
  CHECK(bytes(batch) <= limit);
  CHECK(bytes(batch + 1) > limit);
  CHECK(largest_batch(config, shape, 100, Device::cpu, 100) == 0);
}

TEST_CASE("feeder: an epoch takes every image once in an order of seed and epoch alone", "[unit]") {
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(40, 8, 8, 1, 1);
  const ImageRange range{&set, 0, 40};
  Model model(parse(tiny_config("unused")), {8, 8, 1}, 8, 40, Mode::inference);
  model.allocate(runtime);
  const auto epoch_bytes = [&](uint64_t seed, int64_t epoch) {
    Feeder feeder(runtime, 8, set);
    std::vector<std::vector<uint8_t>> images;
    for (int64_t first = 0; first < 40; first += 8) {
      feeder.pick(range, seed, epoch, first);
      feeder.fill(set);
      feeder.upload(model);
      const std::vector<uint8_t> device = to_host(View<const uint8_t>(model.images()), runtime);
      for (size_t i = 0; i < 8; ++i)
        images.emplace_back(device.begin() + int64_t(i) * 64, device.begin() + int64_t(i + 1) * 64);
    }
    return images;
  };
  const auto a = epoch_bytes(1, 0);
  std::multiset<std::vector<uint8_t>> seen(a.begin(), a.end()), all;
  for (size_t i = 0; i < 40; ++i)
    all.emplace(set.pixels.begin() + int64_t(i) * 64, set.pixels.begin() + int64_t(i + 1) * 64);
  CHECK(seen == all);
  CHECK(epoch_bytes(1, 0) == a);
  CHECK(epoch_bytes(1, 1) != a);
  CHECK(epoch_bytes(2, 0) != a);
}

TEST_CASE("evaluation: counts every image once whatever the batch", "[unit]") {
  const Runtime runtime("cpu", 2);
  const ImageSet set = synthetic_images(21, 8, 8, 1, 1);
  const Config config = parse(tiny_config("unused", "[loss]\nreconstruction = \"mse\"\n"),
                              {"quantizer.initialisation=uniform"});
  const auto mse = [&](int64_t batch) {
    Model model(config, {8, 8, 1}, batch, 21, Mode::training);
    model.allocate(runtime);
    int64_t images = 0;
    const Evaluation e =
        evaluate(model, runtime, {&set, 0, 21}, 1.0, false, [&](int64_t, int64_t count) { images += count; });
    CHECK(images == 21);
    CHECK(e.usage.used >= 1);
    CHECK(e.bits_per_image_nominal == 4 * 4);  // 2 x 2 codes of 4 bits
    return e.mse;
  };
  const double reference = mse(21);
  for (const int64_t batch : {1, 4, 8, 64}) CHECK(std::abs(mse(batch) - reference) <= 1e-6 * reference);
}

TEST_CASE("evaluation: padding of odd sides does not count", "[unit]") {
  // 5 x 7 images in a net that pads to 8 x 8: the reported error is the one of a direct sum over the real
  // pixels.
  const Runtime runtime("cpu", 1);
  const ImageSet set = synthetic_images(3, 5, 7, 3, 1);
  const Config config =
      parse(tiny_config("unused", "[loss]\nreconstruction = \"mse\"\n"), {"quantizer.kind=none"});
  Model model(config, {5, 7, 3}, 3, 3, Mode::training);
  model.allocate(runtime);
  double direct = 0.0;
  const Evaluation e = evaluate(model, runtime, {&set, 0, 3}, 1.0, false, [&](int64_t, int64_t) {
    const View<const float> r = model.reconstruction();
    REQUIRE(r[1] == 8);
    REQUIRE(r[2] == 8);
    for (int64_t n = 0; n < 3; ++n)
      for (int64_t y = 0; y < 5; ++y)
        for (int64_t i = 0; i < 21; ++i) {
          const double pixel = set.pixels[size_t((n * 5 + y) * 21 + i)] / 255.0 - 0.5;
          direct += std::pow(double(r.data[(n * 8 + y) * 24 + i]) - pixel, 2);
        }
  });
  CHECK(std::abs(e.mse - direct / (3 * 5 * 21)) <= 1e-5 * e.mse);
}

TEST_CASE("quality: psnr and ssim of known pairs", "[unit]") {
  CHECK(psnr_db(0.01) == 20.0);
  std::vector<float> a(16 * 16), b(16 * 16, -0.25f);
  for (size_t i = 0; i < a.size(); ++i) a[i] = float(i % 16) / 16.0f - 0.5f;
  const View<const float> va(a.data(), {16, 16, 1}), vb(b.data(), {16, 16, 1});
  CHECK(std::abs(ssim(va, va, 16, 16) - 1.0) <= 1e-12);
  const std::vector<float> c(16 * 16, 0.25f);
  // Two constant images: only the luminance term is left, (2 m n + C1) / (m^2 + n^2 + C1) with m = 1/4, n =
  // 3/4.
  const double expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25 * 0.25 + 0.75 * 0.75 + 1e-4);
  CHECK(std::abs(ssim(vb, {c.data(), {16, 16, 1}}, 16, 16) - expected) <= 1e-9);
  CHECK(std::isnan(ssim(va, va, 10, 16)));
}

TEST_CASE("data: the pixel variance is that of a direct sum", "[unit]") {
  const ImageSet set = synthetic_images(10, 9, 7, 3, 4);
  double sum = 0.0, squares = 0.0;
  const size_t begin = 2 * 9 * 7 * 3, end = 8 * 9 * 7 * 3;
  for (size_t i = begin; i < end; ++i) {
    sum += set.pixels[i] / 255.0;
    squares += set.pixels[i] / 255.0 * (set.pixels[i] / 255.0);
  }
  const double n = double(end - begin);
  CHECK(std::abs(pixel_variance({&set, 2, 8}) - (squares / n - sum / n * (sum / n))) <= 1e-12);
}

TEST_CASE("pictures: bytes round trip through the net's scale", "[unit]") {
  std::vector<float> image(256);
  for (size_t i = 0; i < 256; ++i) image[i] = float(i) / 255.0f - 0.5f;
  const std::vector<uint8_t> bytes = to_bytes({image.data(), {16, 16, 1}}, 16, 16);
  for (size_t i = 0; i < 256; ++i) CHECK(bytes[i] == i);
  const float out_of_range[] = {-3.0f, 7.0f};
  CHECK(to_bytes({out_of_range, {1, 2, 1}}, 1, 2) == std::vector<uint8_t>{0, 255});
}

TEST_CASE("runtime: an absent GPU is an error for cuda and a note for auto", "[bad-input]") {
  if (cuda_problem().empty()) {
    WARN("SKIPPED: a CUDA device is present");
    return;
  }
  require_error(ErrorKind::device, "no CUDA device can be used", "--device cuda", [] { Runtime("cuda", 1); });
  CHECK(Runtime("auto", 1).note().find("no GPU used") != std::string::npos);
  CHECK(Runtime("cpu", 1).note().find("GPU") == std::string::npos);
  require_error(ErrorKind::usage, "unknown device", "device", [] { Runtime("tpu", 1); });
}

}  // namespace vqlab::testing
