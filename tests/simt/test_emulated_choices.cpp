// How the plans of a run's convolutions are chosen, verified, stored and found again. The library of the
// emulated device offers right and wrong ways (conv2d_emulated.cpp); the timer is the test's.
#include <algorithm>
#include <set>

#include "device_testing.hpp"
#include "engine/conv_book.hpp"
#include "expect_error.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

Config tiny(const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all = {"quantizer.initialisation=uniform"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return parse_config(tiny_config("d"), "tiny", all);
}

// Runs every call; the later it comes, the faster it is said to be.
class FakeTimer {
 public:
  explicit FakeTimer(double step) : step_(step) {}
  CallTimer timer() {
    return [this](const std::vector<std::function<void()>>& calls) {
      std::vector<double> times;
      for (const auto& call : calls) {
        call();
        times.push_back(1.0 - step_ * double(times.size()));
      }
      counts.insert(calls.size());
      return times;
    };
  }
  std::multiset<size_t> counts;  // of the calls that were timed together

 private:
  double step_;
};

ConvBook choose(Trainer& trainer, ConvChoosing how, double step = 0.1) {
  FakeTimer fake(step);
  return choose_convolutions(trainer.model(), device_runtime(), how, fake.timer());
}

std::vector<float> weights_after(Trainer& trainer, int steps) {
  for (int i = 0; i < steps; ++i) trainer.step();
  return to_host(View<const float>(trainer.model().parameters().weights()), device_runtime());
}

int64_t fused(const ConvBook& book) {
  return std::ranges::count_if(book.entries, [](const ConvBook::Entry& e) { return e.choice.fused; });
}

const ImageSet& images() {
  static const ImageSet set = synthetic_images(64, 8, 8, 1, 1);
  return set;
}

struct Learner : Trainer {
  explicit Learner(const Config& config) : Trainer(config, device_runtime(), {&images(), 0, 64}) {}
};

}  // namespace

TEST_CASE("choices: by rule nothing is measured, and every library convolution has an entry", "[emulated]") {
  Learner learner(tiny());
  FakeTimer fake(0.1);
  const ConvBook book =
      choose_convolutions(learner.model(), device_runtime(), ConvChoosing::rule, fake.timer());
  CHECK(fake.counts.empty());
  CHECK(book.device == device_runtime().device_name());
  CHECK(book.library == conv_library());
  std::set<std::string> problems;
  for (const ConvBook::Entry& e : book.entries) {
    CHECK(e.choice == ConvChoice{.fused = false, .engine = 0, .knobs = {}});
    CHECK(e.rule_ms == 0.0);
    problems.insert(e.problem);
  }
  CHECK(problems.size() == book.entries.size());
  CHECK(book.summary().starts_with("convolution plans: 0 of"));
  for (const LayerConvolution& layer : learner.model().convolutions(Device::cuda)) {
    CHECK(problems.contains(layer.problem.text()));
    CHECK(layer.choice->engine == 0);
  }
}

// Of the five that the library lists a ReLU that drops NaN, a wrong sum and one that cannot be made are left
// out; with compiling there is one more to fuse.
TEST_CASE("choices: only what can be made and agrees with the rule is timed", "[emulated]") {
  for (const char* precision : {"fp32", "tf32", "bf16"}) {
    INFO(precision);
    Learner learner(tiny({std::string("train.precision=") + precision}));
    FakeTimer measured(0.1), compiled(0.1);
    const ConvBook book =
        choose_convolutions(learner.model(), device_runtime(), ConvChoosing::measured, measured.timer());
    CHECK(!measured.counts.empty());
    CHECK(measured.counts.count(2) + measured.counts.count(3) == measured.counts.size());
    for (const ConvBook::Entry& e : book.entries) {
      const bool gradient = e.problem.starts_with("wgrad");  // by the rule always
      INFO(e.problem << ": " << e.choice.text());
      CHECK(e.choice.engine != 4);
      CHECK(e.choice.engine != 5);
      // Without ReLU or mask engine 3, which drops NaN there, is as good as any.
      CHECK((e.choice.engine != 3 || e.problem.find("+bias (") != std::string::npos));
      if (gradient) CHECK(e.choice.engine == 0);
      if (!gradient) CHECK(e.ms < e.rule_ms);
    }
    const ConvBook more =
        choose_convolutions(learner.model(), device_runtime(), ConvChoosing::compiled, compiled.timer());
    CHECK(fused(more) > fused(book));
    for (const ConvBook::Entry& e : more.entries)
      if (e.problem.find("+relu") != std::string::npos || e.problem.find("+mask") != std::string::npos)
        CHECK(e.choice.engine == 2);
  }
}

TEST_CASE("choices: a gain of less than a twentieth leaves the rule's", "[emulated]") {
  Learner learner(tiny());
  for (const ConvBook::Entry& e : choose(learner, ConvChoosing::compiled, 0.01).entries)
    CHECK(e.choice.engine == 0);
  CHECK(fused(choose(learner, ConvChoosing::compiled, 0.06)) > 0);
}

// In bf16 a fused graph rounds at another place, so its bits are not those of the rule.
TEST_CASE("choices: what is stored gives the bits of the run that stored it", "[emulated]") {
  const Config config = tiny({"train.precision=bf16"});
  Learner first(config), again(config), by_rule(config);
  const ConvBook book = choose(first, ConvChoosing::compiled);
  const std::vector<float> expected = weights_after(first, 4);
  const std::string text = book.to_json().dump();
  use_convolutions(again.model(), ConvBook::from_json(parse_json(text, "text")));
  CHECK(ConvBook::from_json(parse_json(text, "text")).to_json().dump() == text);
  CHECK(weights_after(again, 4) == expected);
  CHECK(weights_after(by_rule, 4) != expected);
}

TEST_CASE("choices: a stored plan that cannot be made is an error", "[emulated][bad-input]") {
  Learner learner(tiny());
  ConvBook book = choose(learner, ConvChoosing::rule);
  book.entries.front().choice.engine = 5;
  require_error(ErrorKind::checkpoint, "by engine 5", "encoder.conv1",
                [&] { use_convolutions(learner.model(), book); });
  book.entries.erase(book.entries.begin());
  require_error(ErrorKind::checkpoint, "no plan is stored for fprop", "encoder.conv1",
                [&] { use_convolutions(learner.model(), book); });
}

TEST_CASE("choices: a fused choice needs something to fuse, aligned", "[emulated][bad-input]") {
  const ConvGeometry geometry{.kernel = 3, .padding = 1};
  const DeviceArray<float> input(2 * 4 * 4 * 8), weight(8 * 9 * 8), bias(8), output(input.size()), odd(8, 1);
  const DeviceScratch scratch(conv_scratch_bytes(Device::cuda, geometry, input.view({2, 4, 4, 8}), 8));
  const ConvChoice fused{.fused = true, .engine = 2, .knobs = {}};
  ConvForwardOp op{.output = output.view({2, 4, 4, 8}),
                   .input = input.view({2, 4, 4, 8}),
                   .weight = weight.view({8, 3, 3, 8}),
                   .bias = bias.view(),
                   .geometry = geometry,
                   .activation = Activation::relu,
                   .scratch = scratch.view(),
                   .choice = &fused};
  run(op, device_stream());
  op.bias = odd.view();
  CHECK_THROWS_AS(run(op, device_stream()), Error);
  op.bias = {};
  CHECK_THROWS_AS(run(op, device_stream()), Error);
  synchronize();
}

TEST_CASE("choices: malformed entries are refused", "[emulated][bad-input]") {
  for (const char* text :
       {"{}", R"({"device": "d", "library": "l"})", R"({"device": 1, "library": "l", "convolutions": []})",
        R"({"device": "d", "library": "l", "convolutions": [{"layer": "x"}]})",
        R"({"device": "d", "library": "l", "convolutions":
            [{"layer": "x", "problem": "p", "fused": false, "engine": 1, "by_rule": true, "knobs": [[1]]}]})"}) {
    INFO(text);
    CHECK_THROWS_AS(ConvBook::from_json(parse_json(text, "text")), Error);
  }
  CHECK_THROWS_AS(parse_choosing("fastest"), Error);
}

TEST_CASE("choices: a run keeps its plans in every checkpoint, also over the CPU", "[emulated]") {
  Lab lab;
  const std::vector<std::string> set = {"device=cuda", "train.convolutions=measured"};
  const auto book = [&](const char* name) {
    return Checkpoint(lab.run(name), "last").convolution_book().to_json().dump();
  };
  lab.train("a", set, 4);
  const std::string stored = book("a");
  CHECK(stored.find("\"rule_ms\"") != std::string::npos);
  lab.train("a", {"device=cpu"}, 8, RunAccess::resume);
  CHECK(book("a") == stored);
  lab.train("a", {"device=cuda"}, 12, RunAccess::resume);
  CHECK(book("a") == stored);  // not measured again
  lab.train("cpu", {"device=cpu"}, 4);
  CHECK(Checkpoint(lab.run("cpu"), "last").convolution_book().device == "");
}

TEST_CASE("choices: a run resumes with its plans or not at all on the same GPU", "[emulated][bad-input]") {
  Lab lab;
  const std::vector<std::string> cuda = {"device=cuda"};
  lab.train("a", cuda, 4);
  const auto store = [&](const char* name, auto change) {
    const Checkpoint checkpoint(lab.run(name), "last");
    Learner learner(load_run_config(lab.run(name)));
    checkpoint.restore(learner.model(), device_runtime());
    ConvBook book = checkpoint.convolution_book();
    change(book);
    learner.model().convolution_book() = book;
    save_checkpoint(lab.run(name), device_runtime(), learner.model(), checkpoint.progress(),
                    checkpoint.facts(), false, 2);
  };
  store("a", [](ConvBook& book) { book.library = "CPU 0.9"; });
  lab.observer.warnings.clear();
  CHECK(lab.train("a", cuda, 6, RunAccess::resume).steps == 6);
  REQUIRE(lab.observer.warnings.size() == 1);
  CHECK(lab.observer.warnings[0].find("made by CPU 0.9, and now by CPU 1.0") != std::string::npos);
  store("a", [](ConvBook& book) {
    book.library = conv_library();
    book.entries.back().choice.engine = 77;
  });
  try {
    lab.train("a", cuda, 8, RunAccess::resume);
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::checkpoint);
    CHECK(error.hint().find(conv_library()) != std::string::npos);
  }
  store("a", [](ConvBook& book) { book.device = "NVIDIA A100"; });
  CHECK(lab.train("a", cuda, 8, RunAccess::resume).steps == 8);
  CHECK(Checkpoint(lab.run("a"), "last").convolution_book().device == device_runtime().device_name());
}

}  // namespace vqlab::testing
