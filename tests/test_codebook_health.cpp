// The rules of a codebook's health, what they read, and the pictures of a codebook.
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "engine/codebook_health.hpp"
#include "engine/codebook_pictures.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

// What the last checkpoint and the log of a healthy run of fmnist-s say.
CodebookSummary healthy() {
  CodebookSummary s{.latents_per_image = 49,
                    .step = 429,
                    .size = 256,
                    .used = 245,
                    .dead = 2,
                    .rare = 2,
                    .perplexity = 180.0,
                    .age = 0.25,
                    .norm = 2.21};
  const double drift[] = {0.0006, 0.0042, 0.0224, 0.118, 0.0102, 0.0007, 0.0005, 0.0100, 0.0004};
  const double norm[] = {0.775, 0.776, 0.865, 1.248, 2.06, 2.18, 2.2, 2.209, 2.213};
  for (int i = 0; i < 9; ++i)
    s.lines.push_back({.step = 50 * (i + 1),
                       .used = 245,
                       .dead = i == 3 ? 12 : 0,
                       .replaced = i == 3 ? 16 : 0,
                       .perplexity = 170.0,
                       .age = 0.25,
                       .norm = norm[i],
                       .drift = drift[i]});
  return s;
}

// The only finding; fails if there are none or several.
HealthFinding only_finding(const CodebookSummary& s) {
  const std::vector<HealthFinding> findings = judge_codebook(s);
  REQUIRE(findings.size() == 1);
  return findings[0];
}

void require_finding(const CodebookSummary& s, const std::string& rule, const std::string& what,
                     const std::string& setting) {
  const HealthFinding found = only_finding(s);
  CHECK(found.rule == rule);
  CHECK(found.what == what);
  CHECK(found.setting == setting);
  // The setting is one that a configuration takes.
  const size_t equals = found.setting.find(" = ");
  REQUIRE(equals != std::string::npos);
  parse_config("", "test", {found.setting.substr(0, equals) + "=" + found.setting.substr(equals + 3)});
}

std::array<uint8_t, 3> pixel(const Chart& chart, int64_t y, int64_t x) {
  const auto* const first = &chart.pixels[size_t((y * chart.width + x) * 3)];
  return {first[0], first[1], first[2]};
}

}  // namespace

TEST_CASE("codebook health: a healthy run has no finding", "[engine]") {
  CHECK(judge_codebook(healthy()).empty());
  CodebookSummary without_log = healthy();
  without_log.lines.clear();
  CHECK(judge_codebook(without_log).empty());
}

TEST_CASE("codebook health: restart that is off", "[engine]") {
  CodebookSummary s = healthy();
  s.config.quantizer.restart_threshold = 0.0;
  s.dead = 0;
  s.rare = 1;
  require_finding(
      s, "restart-off",
      "restart is off, and 1 of 256 codes have less than a tenth of the mean count: they stay dead",
      "quantizer.restart_threshold = 0.1");
  s.rare = 0;
  CHECK(judge_codebook(s).empty());
  s.rare = 200;
  s.config.quantizer.restart_threshold = 0.01;
  CHECK(judge_codebook(s).empty());
}

TEST_CASE("codebook health: dead codes that restart does not keep up with", "[engine]") {
  CodebookSummary s = healthy();
  s.dead = 26;
  require_finding(s, "dead-codes", "26 of 256 codes are dead, although 16 were replaced in the logged steps",
                  "quantizer.restart_every = 1");
  s.dead = 25;
  CHECK(judge_codebook(s).empty());
  s.dead = 26;
  s.config.quantizer.restart_every = 1;
  CHECK(judge_codebook(s).empty());
}

TEST_CASE("codebook health: more codes than a batch has latents", "[engine]") {
  CodebookSummary s = healthy();
  s.config.train.batch_size = 5;  // 245 latents
  require_finding(s, "more-codes-than-latents", "256 codes compete for the 245 latents of a batch",
                  "train.batch_size = 8");
  s.size = 245;
  CHECK(judge_codebook(s).empty());
}

TEST_CASE("codebook health: collapse", "[engine]") {
  CodebookSummary s = healthy();
  s.perplexity = 25.5;
  s.used = 31;
  const std::string what =
      "few codes carry nearly all latents: perplexity 25.5 of 256 codes, 31 of them used in the last batch";
  require_finding(s, "collapse", what, "quantizer.dim = 8");
  s.config.quantizer.initialisation = "uniform";
  require_finding(s, "collapse", what, "quantizer.initialisation = \"kmeans\"");
  s.config.quantizer.initialisation = "kmeans";
  s.config.quantizer.dim = 8;
  require_finding(s, "collapse", what, "quantizer.codebook_size = 64");
  s.config.quantizer.restart_threshold = 0.0;
  s.rare = 0;
  require_finding(s, "collapse", what, "quantizer.restart_threshold = 0.1");
  s.config.quantizer.restart_threshold = 0.1;
  s.step = 229;  // too young: restart has not had its turn, which takes ln 0.1 / ln 0.99 = 229.1 steps
  CHECK(judge_codebook(s).empty());
  s.step = 230;
  CHECK(only_finding(s).rule == "collapse");
  s.perplexity = 25.7;
  CHECK(judge_codebook(s).empty());
}

TEST_CASE("codebook health: codes that still move at the end", "[engine]") {
  CodebookSummary s = healthy();
  for (size_t i = 6; i < 9; ++i) s.lines[i].drift = 0.0234;
  const std::string what =
      "codes still move by 2.34 % of their norm in a step at the end of training, 0.06 % at its start";
  require_finding(s, "drift", what, "quantizer.decay = 0.999");
  s.config.quantizer.kind = "vq_loss";
  require_finding(s, "drift", what, "train.schedule = \"cosine\"");
  s.lines[8].drift = s.lines[7].drift = 0.009;  // the middle one of three counts
  CHECK(judge_codebook(s).empty());
  s.lines = {s.lines.begin(), s.lines.begin() + 7};
  s.lines[6].drift = s.lines[5].drift = 0.5;  // too few lines to speak of an end
  CHECK(judge_codebook(s).empty());
}

TEST_CASE("codebook health: a norm that grows", "[engine]") {
  CodebookSummary s = healthy();
  s.norm = 8.1 * 0.775;
  require_finding(
      s, "norm-growth",
      "the mean norm of the codes grew 8.1 times, from 0.775 at step 50 to 6.28, with commitment_weight 0.25",
      "loss.commitment_weight = 1");
  s.config.loss.commitment_weight = 0.01;
  CHECK(only_finding(s).setting == "loss.commitment_weight = 0.25");
  s.norm = 7.9 * 0.775;
  CHECK(judge_codebook(s).empty());
  s.norm = 100.0;
  s.config.quantizer.initialisation = "uniform";  // which starts near 0
  CHECK(judge_codebook(s).empty());
}

TEST_CASE("codebook health: what is read from a run", "[engine]") {
  Lab lab;
  lab.train("run", {"quantizer.restart_threshold=0"}, 20);
  const Config config = load_run_config(lab.run("run"));
  const auto s = summarise_codebook(lab.run("run"), config, Checkpoint(lab.run("run"), "last"));
  REQUIRE(s);
  CHECK(s->size == 16);
  CHECK(s->step == 20);
  CHECK(s->latents_per_image == 4);
  CHECK(s->latents_per_step() == 32);
  CHECK(s->dead == 0);  // of a threshold of 0
  CHECK((s->used >= 1 && s->used <= 16));
  CHECK((s->perplexity >= 1.0 && s->perplexity <= 16.0));
  CHECK(s->norm > 0.0);
  REQUIRE(!s->lines.empty());
  CHECK(s->lines.back().step <= 20);
  CHECK(std::abs(s->lines.back().norm - s->norm) <= 1e-3 * s->norm);

  const auto why = [&](const char* run, const char* which) {
    const Checkpoint checkpoint(lab.run(run), which);
    CHECK(!summarise_codebook(lab.run(run), load_run_config(lab.run(run)), checkpoint));
    return why_no_codebook(checkpoint);
  };
  CHECK(why("run", "step-00000000") == "the codebook still waits for its first latents");
  lab.train("plain", {"quantizer.kind=none"}, 2);
  CHECK(why("plain", "last") == "the model is a plain autoencoder, without codes");
  lab.train("uniform", {"quantizer.initialisation=uniform"}, 2);
  CHECK(why("uniform", "step-00000000") == "the codebook has not learnt from a batch yet");
}

TEST_CASE("codebook health: lines up to a step, and none after half a line", "[engine]") {
  const TemporaryDirectory directory;
  const auto line = [](int step) {
    return fmt::format(
        R"({{"kind": "step", "step": {}, "codes_used": 3, "perplexity": 2.5, "dead": 1, "age": 0.5, )"
        R"("norm": 1.5, "drift": 0.25, "replaced": 2}})",
        step);
  };
  std::ofstream(directory / "m") << line(5) << '\n'
                                 << R"({"kind": "evaluation", "step": 5, "mse": 1})" << '\n'
                                 << line(10) << '\n'
                                 << line(15) << '\n'
                                 << line(16).substr(0, 40);
  CHECK(read_codebook_lines(directory / "m", 100).size() == 3);
  const std::vector<CodebookLine> lines = read_codebook_lines(directory / "m", 10);
  REQUIRE(lines.size() == 2);
  CHECK(lines[1].step == 10);
  CHECK(lines[1].used == 3);
  CHECK(lines[1].dead == 1);
  CHECK(lines[1].replaced == 2);
  CHECK(lines[1].drift == 0.25);
  CHECK(read_codebook_lines(directory / "missing", 10).empty());
}

TEST_CASE("codebook pictures: codes in order of use", "[engine]") {
  const CodebookUse use = count_codes({2, 2, 0, 2, 3, 0}, 5);
  CHECK(use.total == 6);
  CHECK(use.counts == std::vector<int64_t>{2, 0, 3, 1, 0});
  CHECK(use.by_use == std::vector<int32_t>{2, 0, 3, 1, 4});
}

TEST_CASE("codebook pictures: bars have the height of a code's share", "[engine]") {
  // Shares of 50, 30, 20 and 0 %: the axis ends at 50 %, 256 pixels above row 268; bars are 256 wide.
  const Chart chart = draw_use(count_codes({3, 3, 3, 3, 3, 0, 0, 0, 1, 1}, 4));
  const auto top_of = [&](int64_t x) {
    for (int64_t y = 0; y < chart.height; ++y)
      if (pixel(chart, y, x) == std::array<uint8_t, 3>{31, 119, 180}) return y;
    return int64_t(-1);
  };
  CHECK(top_of(56 + 100) == 268 - 256);
  CHECK(top_of(56 + 256 + 100) == 268 - 154);
  CHECK(top_of(56 + 512 + 100) == 268 - 102);
  CHECK(top_of(56 + 768 + 100) == -1);
  CHECK(pixel(chart, 268 - 128, 56 + 800) == std::array<uint8_t, 3>{214, 39, 40});  // a quarter each
  // Every code alike, none at all, and more codes than columns.
  std::vector<int32_t> all(3000);
  std::iota(all.begin(), all.end(), 0);
  for (const CodebookUse& use : {count_codes(all, 3000), count_codes({}, 7), count_codes({0}, 1)})
    CHECK(int64_t(draw_use(use).pixels.size()) == chart.height * chart.width * 3);
}

}  // namespace vqlab::testing
