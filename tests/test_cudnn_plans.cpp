// What cuDNN offers for our convolutions on the cards that we care about. Its heuristics answer for a card
// that is described to them, so this needs cuDNN but no GPU.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "engine/model.hpp"
#include "expect_error.hpp"
#include "kernels/conv/conv_plans.hpp"
#include "kernels/conv/plan_table.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

constexpr size_t kTableVersion = 91900;  // of the cuDNN that tests/cudnn_plans.txt was made with
constexpr Precision kPrecisions[] = {Precision::fp32, Precision::tf32, Precision::bf16};

void with_cudnn(void (*check)()) {
  const std::string problem = cudnn_problem();
  if (!problem.empty())
    WARN("SKIPPED: " << problem);
  else
    check();
}

// The distinct problems of a training step, each followed by the graphs that could be fused.
std::vector<ConvProblem> problems_of(Config config) {
  if (config.classifier.classes == 0) config.classifier.classes = 10;  // of both data sets
  const ImageShape shape = config.data.kind == "idx" ? ImageShape{28, 28, 1} : ImageShape{32, 32, 3};
  Model model(config, shape, config.train.batch_size, config.train.batch_size, Mode::training);
  std::vector<ConvProblem> list;
  const auto add = [&](ConvProblem problem, ConvFusion fusion) {
    problem.fusion = fusion;
    if (std::ranges::count(list, problem) == 0) list.push_back(problem);
  };
  for (const LayerConvolution& c : model.convolutions(Device::cuda)) {
    add(c.problem, ConvFusion::none);
    if (c.problem.fusion != ConvFusion::none && !c.masked) add(c.problem, c.problem.fusion);
    if (c.masked) add(c.problem, ConvFusion::mask), add(c.problem, ConvFusion::mask_sums);
  }
  return list;
}

std::vector<Config> shipped_configs(Precision precision) {
  std::vector<Config> configs;
  for (const auto& entry : std::filesystem::directory_iterator(VQLAB_SOURCE "/apps/configs"))
    if (entry.path().extension() == ".toml")
      configs.push_back(
          load_config(entry.path(), {std::string("train.precision=") + precision_name(precision)}));
  return configs;
}

// "28 P f32 0": engine, precompiled or compiled at run time, fp32 units or tensor cores, workspace, N if NaN
// is kept.
std::string cell(const PlanLine& plan) {
  if (plan.own_kernel) return "ours";
  if (plan.engine < 0) return "none";
  return fmt::format(
      "{} {} {} {}{}", plan.engine, plan.compiled_at_run_time ? "R" : "P", plan.tensor_cores ? "tc" : "f32",
      plan.compiled_at_run_time ? "?" : fmt::format("{}", plan.workspace_bytes), plan.keeps_nan ? " N" : "");
}

// What must hold of the plans that training uses, whatever the version of cuDNN.
void check_rule(const PlanLine& plan, const std::string& card) {
  const ConvProblem& p = plan.problem;
  INFO(card << ": " << p.text() << ": " << plan.text());
  if (p.fusion != ConvFusion::none) {
    CHECK(plan.serving <= plan.listed);
    CHECK((plan.engine >= 0) == (plan.serving > 0));
    return;
  }
  CHECK(plan.engine >= 0);
  CHECK(!plan.compiled_at_run_time);
  CHECK(plan.tensor_cores == (p.precision != Precision::fp32));
  CHECK(plan.workspace_bytes >= 0);
  CHECK(plan.workspace_bytes <= kConvWorkspaceBytes);
  CHECK(plan.own_kernel == (p.operation == ConvOperation::wgrad && prefers_split_rows(p)));
}

// The table of one config, with a column for each card.
std::vector<std::string> table_of(const Config& config) {
  const std::vector<ConvProblem> problems = problems_of(config);
  std::vector<std::string> lines;
  for (const ConvProblem& problem : problems) lines.push_back(fmt::format("{:<88}", problem.text()));
  for (const std::string& card : plan_cards()) {
    const std::vector<PlanLine> plans = plan_table(card, problems);
    REQUIRE(plans.size() == problems.size());
    for (size_t i = 0; i < plans.size(); ++i) {
      check_rule(plans[i], card);
      lines[i] += fmt::format(" | {:<16}", cell(plans[i]));
    }
  }
  for (std::string& line : lines) line.erase(line.find_last_not_of(' ') + 1);
  return lines;
}

std::vector<std::string> expected_table(const std::string& config, Precision precision) {
  std::ifstream file(VQLAB_SOURCE "/tests/cudnn_plans.txt");
  const std::string wanted = fmt::format("== {}, {}", config, precision_name(precision));
  std::vector<std::string> lines;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("=="))
      inside = line == wanted;
    else if (inside && !line.empty())
      lines.push_back(line);
  }
  return lines;
}

void check_every_config() {
  const std::string hidden = run_time_engines_problem();
  if (!hidden.empty()) WARN(hidden);
  const bool comparable = hidden.empty() && cudnn().cudnnGetVersion() == kTableVersion;
  int configs = 0;
  for (const Precision precision : kPrecisions)
    for (const Config& config : shipped_configs(precision)) {
      const std::vector<std::string> expected = expected_table(config.name, precision);
      if (expected.empty()) continue;  // much the same convolutions; a table takes seconds
      ++configs;
      const std::vector<std::string> lines = table_of(config);
      fmt::print("== {}, {}\n", config.name, precision_name(precision));
      for (const std::string& line : lines) fmt::print("{}\n", line);
      if (!comparable) continue;
      CHECK(lines.size() == expected.size());
      for (size_t i = 0; i < std::min(lines.size(), expected.size()); ++i) CHECK(lines[i] == expected[i]);
    }
  CHECK(configs == 6);
}

std::vector<ConvProblem> three_problems(const View<const float>& input, int64_t output_channels,
                                        const ConvGeometry& g) {
  const View<const float> output(
      nullptr, {input[0], g.output_side(input[1]), g.output_side(input[2]), output_channels});
  return {forward_problem(g, input, output), backward_data_problem(g, input, output),
          backward_weight_problem(g, input, output)};
}

void check_odd_shapes() {
  const ConvKind transposed = ConvKind::transposed;
  std::vector<ConvProblem> list;
  const auto add = [&](const View<const float>& input, int64_t output_channels, const ConvGeometry& g) {
    for (ConvProblem problem : three_problems(input, output_channels, g))
      for (const Precision precision : kPrecisions) {
        problem.precision = precision;
        list.push_back(problem);
      }
  };
  add({nullptr, {3, 28, 25, 3}}, 30, {.kernel = 3, .stride = 2});  // sides not divided
  add({nullptr, {17, 5, 7, 1}}, 1, {.kernel = 3, .stride = 2});
  add({nullptr, {1, 8, 8, 5}}, 7, {.kernel = 4, .stride = 1, .padding = 3});
  add({nullptr, {2, 20, 20, 8}}, 16, {.kernel = 15, .stride = 3, .padding = 7});
  add({nullptr, {9, 5, 7, 30}}, 3, {transposed, 3, 2, 0});
  add({nullptr, {1, 28, 28, 8}}, 16, {.kernel = 4, .stride = 2, .padding = 1});
  // Too large for the workspace of the engines that copy their operands.
  add({nullptr, {128, 256, 256, 64}}, 128, {.kernel = 3, .padding = 1});
  add({nullptr, {16384, 14, 14, 64}}, 32, {transposed, 4, 2, 1});
  for (const std::string& card : plan_cards())
    for (const PlanLine& plan : plan_table(card, list)) {
      INFO(card << ": " << plan.problem.text() << ": " << plan.text());
      CHECK(plan.engine >= 0);
      CHECK(!plan.compiled_at_run_time);
      CHECK(plan.workspace_bytes <= kConvWorkspaceBytes);
      if (plan.problem.precision == Precision::fp32) CHECK(!plan.tensor_cores);
    }
}

// 32 -> 32 channels, a layer of which all is offered.
ConvProblem usual_problem(ConvOperation operation) { return {operation, 128, 14, 14, 32, 7, 7, 32, 4, 2, 1}; }

// The heuristics do offer tensor cores and unstable sums for such a layer, and most of their configs.
void check_refused_configs() {
  const CudnnDescriptor properties = cudnn_card("h100");
  const CudnnTarget target(properties);
  int tensor_core = 0, unstable = 0, exact = 0, rounding = 0;
  for (const CudnnConfig& config :
       listed_configs(target, conv_graph(usual_problem(ConvOperation::wgrad), target))) {
    const bool has_tensor_core = has_note(config, CUDNN_NUMERICAL_NOTE_TENSOR_CORE),
               is_unstable = has_note(config, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
    tensor_core += has_tensor_core, unstable += is_unstable;
    CHECK(!((has_tensor_core || is_unstable) && is_exact(config)));
    CHECK(!(is_unstable && serves(config, Precision::tf32)));
    exact += is_exact(config), rounding += serves(config, Precision::tf32);
  }
  CHECK(tensor_core > 0);
  CHECK(unstable > 0);
  CHECK(exact > 0);
  CHECK(rounding > exact);
}

void check_refused_graph() {
  const CudnnDescriptor properties = cudnn_card("h100");
  // A small side that does not follow from the large one.
  const ConvProblem problem{ConvOperation::fprop, 1, 28, 28, 8, 9, 9, 16, 4, 2, 1};
  std::string message;
  try {
    plan_convolution(problem, CudnnTarget(properties));
  } catch (const Error& error) {
    message = error.what();
    CHECK(error.kind() == ErrorKind::failed);
  }
  CHECK(message.find("BAD_PARAM") != std::string::npos);
}

// What kernels/README.md says about fused graphs.
void check_fused_graphs() {
  const std::string hidden = run_time_engines_problem();
  if (!hidden.empty()) {
    WARN("SKIPPED: " << hidden);
    return;
  }
  for (const std::string& card : plan_cards()) {
    INFO(card);
    const auto plan = [&](ConvOperation operation, Precision precision, ConvFusion fusion) {
      ConvProblem problem = usual_problem(operation);
      problem.precision = precision, problem.fusion = fusion;
      return plan_table(card, {problem}).front();
    };
    const ConvOperation fprop = ConvOperation::fprop, dgrad = ConvOperation::dgrad;
    for (const ConvFusion fusion : {ConvFusion::bias, ConvFusion::bias_relu}) {
      // In fp32 a convolution with bias and ReLU is precompiled; a transposed one is compiled at run time.
      CHECK(!plan(fprop, Precision::fp32, fusion).compiled_at_run_time);
      CHECK(plan(dgrad, Precision::fp32, fusion).compiled_at_run_time);
      CHECK(plan(fprop, Precision::bf16, fusion).compiled_at_run_time);  // because the bias is fp32
      CHECK(plan(dgrad, Precision::bf16, fusion).compiled_at_run_time);
    }
    for (const Precision precision : kPrecisions)
      CHECK(plan(dgrad, precision, ConvFusion::mask).compiled_at_run_time);
    CHECK(plan(dgrad, Precision::fp32, ConvFusion::mask_sums).engine == -1);  // tensor cores only
    CHECK(plan(dgrad, Precision::tf32, ConvFusion::mask_sums).compiled_at_run_time);
    CHECK(plan(dgrad, Precision::bf16, ConvFusion::mask_sums).compiled_at_run_time);
  }
}

// Why bias and ReLU are our own kernel in fp32.
void check_only_one_engine_promises_nan() {
  for (const std::string& card : plan_cards()) {
    const CudnnDescriptor properties = cudnn_card(card);
    const CudnnTarget target(properties);
    ConvProblem problem = usual_problem(ConvOperation::fprop);
    problem.fusion = ConvFusion::bias_relu;
    std::set<int64_t> promising, others;
    for (const CudnnConfig& config : serving_configs(problem, target))
      (has_note(config, CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP) ? promising : others).insert(config.engine);
    INFO(card);
    CHECK(promising == std::set<int64_t>{0});
    CHECK(!others.empty());
  }
}

// A stored choice, an engine and its knobs, gives the plan that it was taken from.
void check_rebuilt_plans() {
  for (const std::string& card : plan_cards()) {
    const CudnnDescriptor properties = cudnn_card(card);
    const CudnnTarget target(properties);
    for (const Precision precision : kPrecisions)
      for (const ConvOperation operation :
           {ConvOperation::fprop, ConvOperation::dgrad, ConvOperation::wgrad}) {
        ConvProblem problem = usual_problem(operation);
        problem.precision = precision;
        INFO(card << ": " << problem.text());
        const ConvPlan plan = plan_convolution(problem, target);
        const ConvGraph graph = conv_graph(problem, target);
        const std::optional<CudnnConfig> again =
            cudnn_config(target, graph.graph, plan.config.engine, plan.config.knobs);
        REQUIRE(again);
        CHECK(again->engine == plan.config.engine);
        CHECK(again->knobs == plan.config.knobs);
        CHECK(again->numerical_notes == plan.config.numerical_notes);
        const std::optional<CudnnDescriptor> rebuilt = cudnn_plan(target, again->config);
        REQUIRE(rebuilt);
        CHECK(rebuilt->get_int64(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) == plan.workspace_bytes);
        CHECK(!cudnn_config(target, graph.graph, 9999, {}));
        if (!plan.config.knobs.empty()) {
          std::vector<ConvKnob> wrong = plan.config.knobs;
          wrong.front().value = 1 << 20;
          const std::optional<CudnnConfig> refused =
              cudnn_config(target, graph.graph, plan.config.engine, wrong);
          CHECK((!refused || !cudnn_plan(target, refused->config)));
        }
      }
  }
}

// Whatever may be measured can be made again from what is stored of it. (Not what is compiled at run time:
// that takes seconds and a driver.)
void check_candidates() {
  const bool lists_compiled = run_time_engines_problem().empty();
  for (const std::string& card : plan_cards()) {
    const CudnnDescriptor properties = cudnn_card(card);
    const CudnnTarget target(properties);
    for (const Precision precision : kPrecisions)
      for (ConvProblem problem : {usual_problem(ConvOperation::fprop), usual_problem(ConvOperation::dgrad)}) {
        problem.precision = precision, problem.fusion = ConvFusion::bias_relu;
        INFO(card << ": " << problem.text());
        const std::vector<ConvChoice> choices = candidate_choices(problem, false, target);
        const ConvPlan rule = plan_choice(problem, {}, target);
        CHECK(choices.front().engine == rule.config.engine);
        CHECK(choices.front().knobs == rule.config.knobs);
        CHECK(choices.size() >= 2);
        CHECK(choices.size() <= 17);
        int fused = 0;
        for (const ConvChoice& choice : choices) {
          INFO(choice.text());
          CHECK(std::ranges::count(choices, choice) == 1);
          const ConvPlan plan = plan_choice(problem, choice, target);
          CHECK(plan.config.engine == choice.engine);
          CHECK(plan.config.knobs == choice.knobs);
          CHECK(serves(plan.config, precision));
          CHECK(!compiles_at_run_time(plan.config));
          fused += choice.fused;
        }
        const bool precompiled = problem.operation == ConvOperation::fprop && precision != Precision::bf16;
        CHECK((fused > 0) == precompiled);
        // Of a convolution in fp32 those that are compiled at run time have tensor cores.
        if (lists_compiled && !(precompiled && precision == Precision::fp32))
          CHECK(candidate_choices(problem, true, target).size() > choices.size());
      }
  }
}

void check_choice_that_cannot_be() {
  const CudnnDescriptor properties = cudnn_card("h100");
  const ConvProblem problem = usual_problem(ConvOperation::fprop);
  for (const ConvChoice& choice : {ConvChoice{.fused = false, .engine = 9999, .knobs = {}},
                                   ConvChoice{.fused = false, .engine = 0, .knobs = {{3, 1 << 20}}}}) {
    std::string message;
    try {
      plan_choice(problem, choice, CudnnTarget(properties));
    } catch (const Error& error) {
      message = error.what();
    }
    CHECK(message.find("cannot compute fprop") != std::string::npos);
    CHECK(message.find(choice.text()) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("cudnn: what may be measured can be made again", "[cudnn-plans]") { with_cudnn(check_candidates); }

TEST_CASE("cudnn: a choice that cannot be made is an error that names it", "[cudnn-plans][bad-input]") {
  with_cudnn(check_choice_that_cannot_be);
}

TEST_CASE("cudnn: the plan of every convolution of two configs, on three cards", "[cudnn-plans]") {
  with_cudnn(check_every_config);
}

TEST_CASE("cudnn: odd and large convolutions have plans that serve", "[cudnn-plans]") {
  with_cudnn(check_odd_shapes);
}

TEST_CASE("cudnn: tensor cores and unstable sums are refused", "[cudnn-plans]") {
  with_cudnn(check_refused_configs);
}

TEST_CASE("cudnn: an impossible convolution is an error with cuDNN's own words", "[cudnn-plans]") {
  with_cudnn(check_refused_graph);
}

TEST_CASE("cudnn: which fused graphs there are", "[cudnn-plans]") { with_cudnn(check_fused_graphs); }

TEST_CASE("cudnn: one engine promises to keep NaN", "[cudnn-plans]") {
  with_cudnn(check_only_one_engine_promises_nan);
}

TEST_CASE("cudnn: a plan is rebuilt from its engine and knobs", "[cudnn-plans]") {
  with_cudnn(check_rebuilt_plans);
}

TEST_CASE("cudnn: a card that is not known is an error with the known ones", "[cudnn-plans][bad-input]") {
  with_cudnn([] {
    require_error(ErrorKind::usage, "card b300 is not known", "--card",
                  [] { plan_table("b300", {usual_problem(ConvOperation::fprop)}); });
  });
}

}  // namespace vqlab::testing
