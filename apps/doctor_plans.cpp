#include "doctor_plans.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "engine/model.hpp"
#include "engine/runtime.hpp"
#include "kernels/conv/plan_table.hpp"
#include "kernels/core/names.hpp"

namespace vqlab {
namespace {

struct Row {
  std::string layer;
  PlanLine plan;
};

// The layers' convolutions, each followed by what could be fused to it.
std::vector<Row> rows_of(Config config) {
  // The shapes and classes of the two data sets; their files need not be here.
  constexpr int64_t kClasses = 10;
  const ImageShape shape = config.data.kind == "idx" ? ImageShape{28, 28, 1} : ImageShape{32, 32, 3};
  if (config.classifier.classes == 0) config.classifier.classes = kClasses;
  Model model(config, shape, config.train.batch_size, config.train.batch_size, Mode::training);
  std::vector<Row> rows;
  for (const LayerConvolution& c : model.convolutions(Device::cuda)) {
    const auto add = [&](ConvFusion fusion) {
      rows.push_back({c.layer, {.problem = c.problem}});
      rows.back().plan.problem.fusion = fusion;
    };
    add(ConvFusion::none);
    if (c.problem.fusion != ConvFusion::none && !c.masked) add(c.problem.fusion);
    if (c.masked) add(ConvFusion::mask), add(ConvFusion::mask_sums);
  }
  return rows;
}

void fill_plans(std::vector<Row>& rows, const std::string& card) {
  std::vector<ConvProblem> problems;
  for (const Row& row : rows) problems.push_back(row.plan.problem);
  const std::vector<PlanLine> plans = plan_table(card, problems);
  for (size_t i = 0; i < rows.size(); ++i) rows[i].plan = plans[i];
}

void require_known_card(const std::string& card) {
  if (std::ranges::count(plan_cards(), card) > 0) return;
  const std::vector<std::string_view> names(plan_cards().begin(), plan_cards().end());
  const std::string near = nearest_name(card, names);
  throw Error(ErrorKind::usage, fmt::format("card {} is not known", card),
              near.empty() ? fmt::format("choose one of {}", fmt::join(names, ", "))
                           : fmt::format("did you mean {}?", near),
              "--card");
}

std::string workspace_text(const PlanLine& plan) {
  if (plan.engine < 0 || plan.own_kernel) return "-";
  return plan.compiled_at_run_time ? "?" : format_bytes(plan.workspace_bytes);
}

Json to_json(const Row& row) {
  const PlanLine& plan = row.plan;
  Json line = Json::object();
  line["layer"] = row.layer;
  line["problem"] = plan.problem.text();
  line["listed"] = plan.listed;
  line["serving"] = plan.serving;
  line["engine"] = plan.own_kernel || plan.engine < 0 ? Json() : Json(plan.engine);
  line["what"] = plan.text();
  line["workspace_bytes"] =
      plan.own_kernel || plan.engine < 0 || plan.compiled_at_run_time ? Json() : Json(plan.workspace_bytes);
  return line;
}

}  // namespace

CommandResult show_plans(const std::string& config_path, const std::vector<std::string>& overrides,
                         const std::string& card, const CommonOptions& common) {
  if (config_path.empty())
    throw Error(ErrorKind::usage, "--card belongs to --plans", "vqlab doctor --plans CONFIG --card h100",
                "--card");
  if constexpr (!kWithCuda) {
    throw Error(ErrorKind::device, "this vqlab was built without CUDA, and so without cuDNN's interface",
                "build it with nvcc and cuDNN's headers there: cmake --workflow --preset cuda", "--plans");
  } else {
    const Config config = load_config(config_path, overrides);
    if (!card.empty()) require_known_card(card);
    const std::string no_gpu = card.empty() ? cuda_problem() : "";
    if (!no_gpu.empty())
      throw Error(ErrorKind::device, no_gpu, "name a card that need not be here: --card h100", "--plans");
    const std::string hidden = run_time_engines_problem();
    std::vector<Row> rows = rows_of(config);
    fill_plans(rows, card);
    Json json = Json::object();
    json["config"] = config.name;
    json["card"] = card.empty() ? Json() : Json(card);
    json["precision"] = config.train.precision;
    json["hidden"] = hidden;
    json["plans"] = Json::array();
    for (const Row& row : rows) json["plans"].push_back(to_json(row));
    if (common.json) return {.json = json};
    std::printf("%s, batch %lld, %s, on %s\n", config.name.c_str(), (long long)config.train.batch_size,
                config.train.precision.c_str(), card.empty() ? "the present GPU" : card.c_str());
    std::printf("fused graphs: the first config that serves, used only where it was measured and verified\n");
    if (!hidden.empty()) std::printf("%s\n", hidden.c_str());
    std::printf("%-24s %-90s %-8s %-10s %s\n", "layer", "convolution", "serving", "workspace", "what");
    for (const Row& row : rows)
      std::printf("%-24s %-90s %-8s %-10s %s\n", row.layer.c_str(), row.plan.problem.text().c_str(),
                  fmt::format("{}/{}", row.plan.serving, row.plan.listed).c_str(),
                  workspace_text(row.plan).c_str(), row.plan.text().c_str());
    return {.json = json};
  }
}

}  // namespace vqlab
