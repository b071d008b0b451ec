// Experiments: axes, members, what is skipped and what is refused, figures, charts, reports.
#include <rapidcheck.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>

#include "engine/experiment/charts.hpp"
#include "engine/experiment/figures.hpp"
#include "engine/experiment/report.hpp"
#include "engine/io/file.hpp"
#include "expect_error.hpp"
#include "html.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

// A plan of two members with two seeds each on the set of a lab, and what it comes to.
struct Bench {
  explicit Bench(const Texts& axes = {"quantizer.codebook_size=8,16"},
                 const std::vector<int64_t>& seeds = {0}) {
    std::ofstream(lab.run("tiny.toml")) << tiny_config(lab.data());
    options = {.config = lab.run("tiny.toml"),
               .overrides = {"train.epochs=1"},
               .axes = axes,
               .seeds = seeds,
               .recognition = false,
               .mse_levels = {0.2},
               .charts = {}};
  }
  std::string out() const { return lab.run("out"); }
  ExperimentOutcome run() {
    return run_experiment(plan_sweep(options), {.directory = out(), .command = "test"}, lab.observer);
  }
  Lab lab;
  SweepOptions options;
};

Json result_of(double mse, double seconds) {
  Json result = Json::object();
  result["test"]["images"] = 24;
  result["test"]["mse"] = mse;
  result["train"]["seconds"] = seconds;
  Json evaluation = Json::object();
  evaluation["seconds"] = seconds;
  evaluation["mse"] = mse;
  result["train"]["evaluations"].push_back(evaluation);
  result["device"] = "cpu";
  result["threads"] = 2;
  result["training_images"] = 64;
  return result;
}

Json recognition_row(const std::string& group, const std::string& feature, int64_t labels, double accuracy) {
  const RecognitionRow row{.feature = feature,
                           .head = "logistic",
                           .labels = labels,
                           .draws = 1,
                           .accuracy = accuracy,
                           .accuracy_min = accuracy - 0.01,
                           .accuracy_max = accuracy + 0.01};
  Json json = Json::object();
  json["group"] = group;
  const Json figures = row.to_json();
  for (const auto& [key, value] : figures.members()) json[key] = value;
  return json;
}

}  // namespace

TEST_CASE("experiment: axes are values and ranges and arrays", "[unit]") {
  CHECK(parse_axis("train.learning_rate=1e-3,3e-4").values == Texts{"1e-3", "3e-4"});
  CHECK(parse_axis("quantizer.codebook_size=512:4096:x2").values == Texts{"512", "1024", "2048", "4096"});
  CHECK(parse_axis("quantizer.dim=4:9:+2,64").values == Texts{"4", "6", "8", "64"});
  CHECK(parse_axis("loss.commitment_weight=0.1:0.3:+0.1").values == Texts{"0.1", "0.2", "0.3"});
  CHECK(parse_axis("train.learning_rate=1e-4:1e-2:x10").values == Texts{"0.0001", "0.001", "0.01"});
  CHECK(parse_axis("quantizer.levels=[8,6,5],[8,8,8]").values == Texts{"[8,6,5]", "[8,8,8]"});
  CHECK(parse_axis("data.path=\"a,b\", c").values == Texts{"\"a,b\"", "c"});
  CHECK(parse_axis("data.path=c:d:e").values == Texts{"c:d:e"});
}

TEST_CASE("experiment: malformed axes and seeds are refused with their text", "[bad-input]") {
  const auto refuse = [](const std::string& text, const std::string& what) {
    require_error(ErrorKind::usage, what, "-a " + text, [&] { parse_axis(text); });
  };
  refuse("quantizer.dim", "KEY=V1,V2");
  refuse("=1,2", "KEY=V1,V2");
  refuse("quantizer.dim=", "empty");
  refuse("quantizer.dim=1,,2", "empty");
  refuse("quantizer.dim=1,2,1", "twice");
  refuse("quantizer.dim=1:4:x2,2", "twice");
  refuse("quantizer.dim=4:1:x2", "does not go up");
  refuse("quantizer.dim=0:8:x2", "does not go up");
  refuse("quantizer.dim=1:8:x1", "does not go up");
  refuse("quantizer.dim=1:8:+0", "does not go up");
  refuse("quantizer.dim=0:9000:+1", "more than 1000");
  refuse("quantizer.levels=[8,6", "do not match");
  refuse("quantizer.levels=8]", "do not match");
  refuse("seed=1,2", "not an axis");
  for (const std::string text : {"", "1,", "-1", "1.5", "x", "0,1,0"})
    require_error(ErrorKind::usage, "seed", "--seeds " + text, [&] { parse_seeds(text); });
  CHECK(parse_seeds("0,1,20") == std::vector<int64_t>{0, 1, 20});
}

TEST_CASE("experiment: an axis gives back the values that it was written with", "[unit]") {
  CHECK(rc::check([](const std::vector<uint32_t>& numbers) {
    const std::set<uint32_t> distinct(numbers.begin(), numbers.end());
    RC_PRE(!distinct.empty());
    std::string text = "k=";
    Texts values;
    for (const uint32_t n : distinct) {
      values.push_back(n % 3 == 0 ? "[" + std::to_string(n) + ",1]" : std::to_string(n));
      text += (values.size() > 1 ? "," : "") + values.back();
    }
    RC_ASSERT(parse_axis(text).values == values);
  }));
  CHECK(rc::check([](const std::string& text) {  // anything is values or an error, never a crash
    try {
      RC_ASSERT(!parse_axis("k=" + text).values.empty());
    } catch (const Error& error) {
      RC_ASSERT(error.kind() == ErrorKind::usage);
    }
  }));
}

TEST_CASE("experiment: axes multiply and members are named after them", "[unit]") {
  const auto points = multiply({{"quantizer.kind", {"vq_ema", "\"none\""}}, {"quantizer.dim", {"4", "8"}}});
  REQUIRE(points.size() == 4);
  CHECK(points[0].name == "kind=vq_ema,dim=4");
  CHECK(points[1].name == "kind=vq_ema,dim=8");
  CHECK(points[3].name == "kind=none,dim=8");
  CHECK(points[3].overrides == Texts{"quantizer.kind=\"none\"", "quantizer.dim=8"});
  CHECK(multiply({{"a.kind", {"x"}}, {"b.kind", {"y"}}})[0].name == "a.kind=x,b.kind=y");
  CHECK(multiply({{"q.levels", {"[8, 6,5]"}}})[0].name == "levels=8-6-5");
  CHECK(multiply({{"data.path", {"/a/b"}}})[0].name == "path=-a-b");
  CHECK(multiply({}).size() == 1);
  require_error(ErrorKind::usage, "two axes", "-a a.k", [] { multiply({{"a.k", {"1"}}, {"a.k", {"2"}}}); });
  require_error(ErrorKind::usage, "would be named", "-a", [] { multiply({{"a.k", {"a/b", "a-b"}}}); });
  require_error(ErrorKind::usage, "too long", "-a", [] { multiply({{"a.k", {std::string(300, 'x')}}}); });
}

TEST_CASE("experiment: a plan knows its members and refuses equal ones", "[bad-input]") {
  Bench bench({"train.learning_rate=1e-3,3e-4"}, {0, 7});
  const ExperimentPlan plan = plan_sweep(bench.options);
  REQUIRE(plan.members.size() == 4);
  CHECK(plan.members[3].directory() == "runs/learning_rate=3e-4-seed7");
  CHECK(plan.members[3].config.train.learning_rate == 3e-4);
  CHECK(plan.members[3].config.seed == 7);
  const auto refuse = [&](const Texts& axes, const std::string& what, const std::string& where) {
    bench.options.axes = axes;
    require_error(ErrorKind::usage, what, where, [&] { plan_sweep(bench.options); });
  };
  refuse({"train.learning_rate=1e-3,0.001"}, "the same configuration", "-a");
  refuse({"train.epochz=1,2"}, "unknown key train.epochz", "--set train.epochz=1");
  refuse({"train.epochs=1,two"}, "must be an integer", "--set train.epochs=two");
  bench.options.seeds = {0};
  refuse({}, "needs an axis", "command line");
  bench.options.charts = {"quantizer.dim,msee"};
  refuse({"quantizer.dim=1,2"}, "msee is neither", "--chart quantizer.dim,msee");
  bench.options.charts = {"quantizer.kind,mse"};
  refuse({"quantizer.kind=vq_ema,none"}, "has no place", "--chart quantizer.kind,mse");
}

TEST_CASE("experiment: the recognition experiment has one net for all and its controls", "[unit]") {
  const ExperimentPlan plan =
      plan_recognition({.data = "/data", .members = {"ae", "vq_ema"}, .seeds = {3, 4}});
  REQUIRE(plan.members.size() == 4);
  const Config standard = parse_config("", "", {"quantizer.kind=none", "data.path=/data"});
  CHECK(differing_keys(standard, plan.members[0].config, {"name", "seed"}) == Texts{});
  std::map<std::string, int> groups;
  for (const Member& member : plan.members)
    for (const RecognitionJob& job : member.recognition) ++groups[job.group];
  CHECK(groups[kBaselineGroup] == 2);  // of the first member only
  CHECK(groups["random"] == 2);        // of each seed of vq_ema
  CHECK(plan.members[0].recognition[2].options.features == Texts{"z_e"});
  CHECK(plan.members[2].recognition[2].options.features == Texts{"z_q"});
  const ExperimentPlan quick = plan_recognition({.members = {"ae"}, .quick = true});
  REQUIRE(quick.members.size() == 1);
  CHECK(quick.members[0].config.train.epochs == 1);
  CHECK(quick.members[0].recognition[0].options.labels == std::vector<int64_t>{100, 1000});
  require_error(ErrorKind::usage, "unknown member vae", "--members",
                [] { plan_recognition({.members = {"vae"}}); });
}

TEST_CASE("experiment: rate and distortion has VQ and FSQ at about the same numbers of codes", "[unit]") {
  const ExperimentPlan plan = plan_rate_distortion({.data = "/data", .seeds = {5}, .epochs = 2});
  std::map<std::string, std::vector<int64_t>> codes;
  for (const Member& member : plan.members) {
    CHECK(member.recognition.empty());
    CHECK(member.config.train.epochs == 2);
    codes[member.config.quantizer.kind].push_back(member.config.quantizer.codebook_size);
  }
  CHECK(codes["none"].size() == 1);
  CHECK(codes["vq_ema"] == std::vector<int64_t>{16, 64, 256, 1024});
  CHECK(codes["fsq"] == std::vector<int64_t>{16, 64, 240, 1000});
}

TEST_CASE("experiment: what is done is skipped and what is half done goes on", "[unit]") {
  Bench bench;
  const ExperimentPlan plan = plan_sweep(bench.options);
  CHECK(look_at(plan, bench.out()) == std::vector{MemberState::fresh, MemberState::fresh});
  CHECK_FALSE(fs::exists(bench.out()));
  const ExperimentOutcome first = bench.run();
  const std::string done = bench.out() + "/" + plan.members[0].directory(),
                    half = bench.out() + "/" + plan.members[1].directory();
  const std::string result = read_file(done + "/result.json", 1 << 20);
  const auto written = fs::last_write_time(done + "/result.json");
  CHECK(first.members[0].result.dump() == parse_json(result, "result").dump());
  CHECK(first.members[1].result.at("steps").as_integer() == 8);
  CHECK(first.members[1].result.at("test").at("images").as_integer() == 24);
  CHECK(first.members[1].result.at("train").at("evaluations").items().size() == 1);
  CHECK(first.members[1].result.at("train").at("seconds").as_number() > 0.0);

  fs::remove_all(half);
  TrainOptions options{.config = plan.members[1].config,
                       .run = half,
                       .access = RunAccess::create,
                       .max_steps = 5,
                       .command = ""};
  train(options, bench.lab.observer);
  CHECK(look_at(plan, bench.out()) == std::vector{MemberState::done, MemberState::begun});
  const ExperimentOutcome second = bench.run();
  CHECK(fs::last_write_time(done + "/result.json") == written);
  for (const char* key : {"weights_sha256", "test", "steps"})
    CHECK(second.members[1].result.at(key).dump() == first.members[1].result.at(key).dump());
}

TEST_CASE("experiment: a run with a classifier is known again and has its accuracy", "[unit]") {
  Bench bench;
  bench.options.overrides.push_back(
      "loss.classifier_weight=0.5");  // the run's own file says how many classes
  const ExperimentPlan plan = plan_sweep(bench.options);
  const ExperimentOutcome outcome = bench.run();
  CHECK(value_of(*find_figure("accuracy"), outcome.members[0].result));
  CHECK(look_at(plan, bench.out()) == std::vector{MemberState::done, MemberState::done});
  fs::remove(bench.out() + "/" + plan.members[1].directory() + "/result.json");
  CHECK(bench.run().members[1].result.at("test").dump() == outcome.members[1].result.at("test").dump());
}

TEST_CASE("experiment: a result of other questions or a damaged one is measured again", "[bad-input]") {
  Bench bench;
  bench.run();
  ExperimentPlan plan = plan_sweep(bench.options);
  const std::string path = bench.out() + "/" + plan.members[0].directory() + "/result.json";
  const std::string before = read_file(path, 1 << 20);
  std::ofstream(path) << before.substr(0, before.size() / 2);
  CHECK(look_at(plan, bench.out()) == std::vector{MemberState::begun, MemberState::done});
  CHECK(bench.run().members[0].result.at("test").dump() == parse_json(before, "").at("test").dump());
  plan.members[1].recognition.push_back({.options = {.features = {"z_q"}}});
  CHECK(look_at(plan, bench.out()) == std::vector{MemberState::done, MemberState::begun});
}

TEST_CASE("experiment: foreign directories and runs of other configurations are refused", "[bad-input]") {
  Bench bench;
  bench.run();
  const ExperimentPlan plan = plan_sweep(bench.options);
  const std::string run = bench.out() + "/" + plan.members[0].directory();
  const std::string before = read_file(run + "/ckpt/last/model.safetensors", 1 << 24);
  bench.options.overrides = {"train.epochs=2", "device=cpu"};
  require_error(ErrorKind::usage, "train.epochs differs", run, [&] { bench.run(); });
  CHECK(read_file(run + "/ckpt/last/model.safetensors", 1 << 24) == before);
  ExperimentPlan other = plan;
  other.kind = "recognition";
  require_error(ErrorKind::usage, "of the kind `sweep`", bench.out(), [&] { look_at(other, bench.out()); });
  const TemporaryDirectory foreign;
  std::ofstream(foreign / "thesis.tex") << "keep me";
  require_error(ErrorKind::usage, "holds other files", foreign.path(),
                [&] { look_at(plan, foreign.path()); });
  require_error(ErrorKind::usage, "is a file", foreign / "thesis.tex",
                [&] { look_at(plan, foreign / "thesis.tex"); });
}

TEST_CASE("experiment: means and ranges and levels", "[unit]") {
  Summary s;
  CHECK(s.to_json().is_null());
  for (const double value : {3.0, 1.0, 8.0}) s.add(value);
  CHECK(s.mean == 4.0);
  CHECK(s.low == 1.0);
  CHECK(s.high == 8.0);
  CHECK(summary_from(s.to_json()).count == 3);
  s.add(4.0, 0.5, 9.0);
  CHECK(s.low == 0.5);
  CHECK(s.high == 9.0);
  CHECK(summary_from(Json()).count == 0);
  const Json result = result_of(0.25, 7.0);
  CHECK(seconds_until(result, 0.3) == 7.0);
  CHECK(!seconds_until(result, 0.2));
  CHECK(value_of(*find_figure("mse"), result) == 0.25);
  CHECK(!value_of(*find_figure("ssim"), result));
  CHECK(format_figure("mse", kNoValue) == "-");
}

TEST_CASE("experiment: charts draw one point and equal values and leave out what is no number", "[unit]") {
  XyChart chart{.title = "a < b & \"c\"", .description = "d", .x = {.title = "x (s)"}, .y = {.title = "y"}};
  require_well_formed(draw(chart));
  CHECK(draw(chart).find("nothing was measured") != std::string::npos);
  CHECK(draw(chart).find("a &lt; b &amp; &quot;c&quot;") != std::string::npos);
  chart.series = {{"<one>", {{.x = 5.0, .y = 2.0}}}};
  const std::string one = draw(chart);
  require_well_formed(one);
  CHECK(count_of(one, "<circle") == 2);  // the point and the legend
  chart.series[0].points.push_back({.x = kNoValue, .y = 1.0});
  chart.series[0].points.push_back({.x = 5.0, .y = std::numeric_limits<double>::infinity()});
  CHECK(draw(chart) == one);
  chart.series[0].points.push_back({.x = 5.0, .y = 2.0, .low = 1.0, .high = 3.0, .label = "&"});
  chart.levels = {{"level", 2.5}, {"none", kNoValue}};
  require_well_formed(draw(chart));
  chart.x.scale = chart.y.scale = Scale::logarithmic;
  chart.series[0].points.push_back({.x = 0.0, .y = -1.0});
  const std::string logarithmic = draw(chart);
  require_well_formed(logarithmic);
  for (const std::string& svg : {one, logarithmic}) {
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(svg.find("inf") == std::string::npos);
  }
}

TEST_CASE("experiment: bars have whiskers and what was not measured is a dash", "[unit]") {
  for (const BarStyle style : {BarStyle::bars, BarStyle::dots}) {
    BarChart chart{.title = "t", .description = "d", .value = {.title = "v"}, .style = style};
    require_well_formed(draw(chart));
    chart.bars = {{"a", 1.0, 0.5, 1.5, "1.0"}, {"b", kNoValue}, {"c", 1.0, 1.0, 1.0, "1.0"}};
    const std::string svg = draw(chart);
    require_well_formed(svg);
    CHECK(count_of(svg, "stroke-width=\"1.4\"") == 3);  // one whisker and its two ends
    CHECK(svg.find(">-</text>") != std::string::npos);
    CHECK(svg.find("nan") == std::string::npos);
    chart.bars = {{"zero", 0.0, 0.0, 0.0, "0"}};
    CHECK(draw(chart).find("nan") == std::string::npos);
  }
}

TEST_CASE("experiment: a report has means and ranges and dashes and nothing else", "[unit]") {
  Bench bench({"quantizer.kind=vq_ema,none"}, {0, 1});
  bench.options.mse_levels = {0.3, 0.1};
  ExperimentPlan plan = plan_sweep(bench.options);
  plan.title = "<Title> & |more|";
  ExperimentOutcome outcome{.members = std::vector<MemberOutcome>(4)};
  outcome.members[0].result = result_of(0.2, 4.0);
  outcome.members[1].result = result_of(0.4, 6.0);
  outcome.members[2].failure = "it diverged";
  outcome.members[0].result["rows"].push_back(recognition_row("kind=vq_ema", "dec_h", 100, 0.70));
  outcome.members[0].result["rows"].push_back(recognition_row("kind=vq_ema", "dec_h", 0, 0.80));
  outcome.members[0].result["rows"].push_back(recognition_row(kBaselineGroup, "pixels", 0, 0.60));
  outcome.members[1].result["rows"].push_back(recognition_row("kind=vq_ema", "dec_h", 0, 0.90));
  outcome.members[1].result["test"]["accuracy"] = 0.5;
  const Json report = summarise(plan, outcome, {.directory = "out", .command = "vqlab sweep"});
  const Json& ema = report.at("groups").items()[0];
  CHECK(ema.at("figures").at("mse").dump() ==
        "{\"mean\": 0.30000000000000004, \"min\": 0.2, \"max\": 0.4, \"n\": 2}");
  CHECK(ema.at("figures").at("ssim").is_null());
  CHECK(summary_from(ema.at("seconds_until").items()[0].at("seconds")).count == 1);
  CHECK(report.at("groups").items()[1].at("figures").at("mse").is_null());
  CHECK(report.at("runs").items()[2].at("state").as_string() == "failed");
  CHECK(report.at("runs").items()[3].at("state").as_string() == "pending");
  CHECK_FALSE(report.at("complete").as_bool());
  REQUIRE(report.at("recognition").items().size() == 3);
  const Summary all = summary_from(report.at("recognition").items()[1].at("accuracy"));
  CHECK(all.mean == Approx(0.85));
  CHECK(all.low == Approx(0.79));
  CHECK(all.high == Approx(0.91));

  const Document document = make_document(plan, report);
  const std::string text = to_markdown(document), html = to_html(document);
  require_well_formed(html);
  CHECK(text.find("| kind=vq_ema | 0.30000 (0.20000 - 0.40000) |") != std::string::npos);
  CHECK(text.find("| kind=none | - |") != std::string::npos);
  CHECK(text.find("| kind=vq_ema, dec_h, logistic | 70.0 (69.0 - 71.0) | 85.0 (79.0 - 91.0) |") !=
        std::string::npos);
  CHECK(text.find("| kind=vq_ema, own classifier | - | 50.0 |") != std::string::npos);
  CHECK(text.find("4.0 (1 of 2)") != std::string::npos);
  CHECK(text.find("failed: it diverged") != std::string::npos);
  CHECK(text.find("nan") == std::string::npos);
  CHECK(html.find("&lt;Title&gt; &amp; |more|") != std::string::npos);
  CHECK(final_table(report).find("0.30000") != std::string::npos);
}

TEST_CASE("experiment: a model that is not trained to reconstruct has no figures of it", "[unit]") {
  Bench bench({"quantizer.kind=vq_ema,none"});
  ExperimentPlan plan = plan_sweep(bench.options);
  plan.members[1].reconstructs = false;
  ExperimentOutcome outcome{.members = std::vector<MemberOutcome>(2)};
  for (MemberOutcome& member : outcome.members) member.result = result_of(0.1, 1.0);
  const Json report = summarise(plan, outcome, {.directory = "out", .command = ""});
  const Json& supervised = report.at("groups").items()[1];
  CHECK(supervised.at("figures").at("mse").is_null());
  CHECK(supervised.at("seconds_until").items()[0].at("seconds").is_null());
  CHECK(!supervised.at("figures").at("seconds").is_null());
  CHECK(report.at("runs").items()[1].at("test").at("mse").as_number() == 0.1);
}

TEST_CASE("experiment: a sweep goes through the program and a second call does nothing", "[cli]") {
  const Bench bench;
  const std::string command = "sweep " + bench.options.config +
                              " -a quantizer.codebook_size=4:16:x2 -a quantizer.kind=vq_ema,none --seeds 0,1 "
                              "--set train.epochs=2 --chart quantizer.codebook_size,mse -o " +
                              bench.out();
  const CommandResult dry = run_vqlab(command + " --dry-run");
  CHECK(dry.exit_code == 0);
  CHECK(count_of(dry.out, "to be trained") == 12);
  CHECK_FALSE(fs::exists(bench.out()));
  const CommandResult first = run_vqlab(command + " --json");
  INFO(first.err);
  REQUIRE(first.exit_code == 0);
  const Json report = parse_json(first.out, "stdout");
  CHECK(report.at("groups").items().size() == 6);
  CHECK(report.at("runs").items().size() == 12);
  CHECK(report.at("complete").as_bool());
  const std::string file = read_file(bench.out() + "/report.json", 1 << 24);
  CHECK(parse_json(file, "report.json").dump() == report.dump());
  const std::string html = read_file(bench.out() + "/report.html", 1 << 24);
  require_well_formed(html);
  CHECK(count_of(html, "<svg") == 4);  // MSE, rate and distortion, the one asked for, training
  CHECK(html.find("Rate and distortion") != std::string::npos);
  CHECK(fs::exists(report.at("report").as_string()));
  const CommandResult second = run_vqlab(command + " --quiet");
  CHECK(second.exit_code == 0);
  CHECK(second.out.find("codebook_size=16,kind=none") != std::string::npos);
  CHECK(second.err.empty());
  CHECK(read_file(bench.out() + "/report.html", 1 << 24) != "");
  CHECK(run_vqlab(command + " --dry-run").out.find("to be trained") == std::string::npos);
}

TEST_CASE("experiment: SIGINT stops a sweep in good order and the same command goes on", "[cli]") {
  const Bench bench;
  const std::string command = "sweep " + bench.options.config + " -a quantizer.dim=2,4 --json -o " +
                              bench.out() + " --set train.epochs=";
  // The first member is far longer than the wait.
  const std::string script = std::string(VQLAB_BINARY) + " " + command + "1000000 >" + bench.lab.run("text") +
                             " 2>/dev/null & p=$!; for i in $(seq 100); do [ -e " + bench.out() +
                             "/runs/dim=2-seed0/ckpt/step-00000005 ] && break; sleep 0.05; done; "
                             "kill -INT $p; wait $p; exit $?";
  const int status = std::system(("bash -c '" + script + "'").c_str());
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
  const Json report = parse_json(read_file(bench.lab.run("text"), 1 << 20), "stdout");
  CHECK_FALSE(report.at("complete").as_bool());
  for (const Json& run : report.at("runs").items()) CHECK(run.at("state").as_string() == "pending");
  const CommandResult dry = run_vqlab(command + "1000000 --dry-run");
  CHECK(dry.out.find("\"goes on\"") != std::string::npos);
  require_failure(run_vqlab(command + "3"), 2, "train.epochs differs", "another -o");
}

TEST_CASE("experiment: the command line is checked before anything is done", "[bad-input]") {
  const Bench bench;
  const std::string sweep = "sweep " + bench.options.config + " ";
  require_failure(run_vqlab(sweep + "-a quantizer.dim=2,4"), 2, "needs a directory", "-o DIR");
  require_failure(run_vqlab(sweep + "-o " + bench.out()), 2, "needs an axis", "-a");
  require_failure(run_vqlab(sweep + "-a quantizer.dmi=2,4 -o " + bench.out()), 2, "unknown key quantizer.dmi",
                  "quantizer.dim");
  require_failure(run_vqlab(sweep + "-a data.path=/nonexistent -o " + bench.out()), 3, "/nonexistent", "");
  require_failure(run_vqlab("experiment recogniton -o " + bench.out()), 2, "no experiment recogniton",
                  "recognition");
  require_failure(run_vqlab("experiment recognition --members vae -o " + bench.out()), 2, "unknown member",
                  "vq_ema");
  const CommandResult dry = run_vqlab("experiment recognition --members ae,vq_ema --data " +
                                      bench.lab.data() + " --dry-run -o " + bench.lab.run("other"));
  CHECK(dry.exit_code == 0);
  CHECK(count_of(dry.out, "to be trained") == 6);
}

}  // namespace vqlab::testing
