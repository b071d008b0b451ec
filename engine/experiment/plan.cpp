#include "plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "figures.hpp"
#include "kernels/core/check.hpp"
#include "kernels/core/names.hpp"

namespace vqlab {
namespace {

constexpr const char* kFashionMnist = "/usr/share/datasets/fashion-mnist";

[[noreturn]] void fail(const std::string& what, const std::string& hint, const std::string& where) {
  throw Error(ErrorKind::usage, what, hint, where);
}

// ---- prepared experiments: their members at equal net, epochs, batch and learning rate --------------------

struct MemberKind {
  const char* name;
  std::vector<const char*> overrides;
  bool reconstructs = true;
};

// Training with labels follows the cosine schedule, which the report says.
const std::vector<MemberKind>& recognition_kinds() {
  static const std::vector<MemberKind> kinds = {
      {"ae", {"quantizer.kind=none"}},
      {"vq_ema", {"quantizer.kind=vq_ema"}},
      {"vq_loss", {"quantizer.kind=vq_loss"}},
      {"fsq", {"quantizer.kind=fsq", "quantizer.levels=[8,6,5]"}},
      {"vq_joint", {"quantizer.kind=vq_ema", "loss.classifier_weight=0.5", "train.schedule=cosine"}},
      {"supervised",
       {"quantizer.kind=none", "loss.reconstruction_weight=0", "loss.classifier_weight=1",
        "train.schedule=cosine"},
       false},
  };
  return kinds;
}

// FSQ's paper (Mentzer et al. 2023, table 1) advises levels for 2^8 and 2^10 codes: the last two.
const std::vector<MemberKind>& rate_distortion_kinds() {
  static const std::vector<MemberKind> kinds = {
      {"ae", {"quantizer.kind=none"}},
      {"vq-16", {"quantizer.kind=vq_ema", "quantizer.codebook_size=16"}},
      {"vq-64", {"quantizer.kind=vq_ema", "quantizer.codebook_size=64"}},
      {"vq-256", {"quantizer.kind=vq_ema", "quantizer.codebook_size=256"}},
      {"vq-1024", {"quantizer.kind=vq_ema", "quantizer.codebook_size=1024"}},
      {"fsq-16", {"quantizer.kind=fsq", "quantizer.levels=[4,4]"}},
      {"fsq-64", {"quantizer.kind=fsq", "quantizer.levels=[8,8]"}},
      {"fsq-240", {"quantizer.kind=fsq", "quantizer.levels=[8,6,5]"}},
      {"fsq-1000", {"quantizer.kind=fsq", "quantizer.levels=[8,5,5,5]"}},
  };
  return kinds;
}

const std::vector<int64_t> kBudgets = {100, 1000, 10000, 0}, kQuickBudgets = {100, 1000};

// What recognise() is asked for on a trained member: the one table of features, heads and label budgets. The
// latents are taken as the decoder sees them; a decoder that is not trained gives no feature.
std::vector<RecognitionJob> member_jobs(const Member& member, const std::vector<int64_t>& budgets) {
  const std::string latents = member.config.quantizer.kind == "none" ? "z_e" : "z_q",
                    map = member.reconstructs ? "dec_h" : "enc_h";
  const int64_t most = budgets.back();
  const uint64_t seed = uint64_t(member.seed);
  return {{.options = {.features = {map}, .heads = {"logistic"}, .labels = budgets, .seed = seed}},
          {.options = {.features = {map}, .heads = {"knn"}, .labels = {most}, .seed = seed}},
          {.options = {.features = {latents}, .heads = {"logistic", "knn"}, .labels = {most}, .seed = seed}}};
}

// The same of the images themselves.
std::vector<RecognitionJob> baseline_jobs(const std::vector<int64_t>& budgets) {
  return {{.group = kBaselineGroup,
           .options = {.features = {"pixels", "hog"}, .heads = {"logistic"}, .labels = budgets}},
          {.group = kBaselineGroup,
           .options = {.features = {"pixels"}, .heads = {"knn"}, .labels = {budgets.back()}}}};
}

// The control: the net as it was before the first step.
RecognitionJob random_job(int64_t seed, int64_t most_labels) {
  return {.group = "random",
          .checkpoint = "step-00000000",
          .options = {.features = {"enc_h"},
                      .heads = {"logistic", "knn"},
                      .labels = {most_labels},
                      .seed = uint64_t(seed)}};
}

// What the members share, and where they do not.
std::string shared_settings(const std::vector<Member>& members) {
  std::set<std::string> cosine;
  for (const Member& member : members)
    if (member.config.train.schedule == "cosine") cosine.insert(fmt::format("`{}`", member.name));
  const TrainConfig& train = members[0].config.train;
  const std::string schedule =
      cosine.empty() ? "constant"
                     : fmt::format("cosine for {}, constant for the others", fmt::join(cosine, " and "));
  return fmt::format(
      "Every member has the same net, {} epoch{}, batches of {} and learning rate {}. Schedule: {}.",
      train.epochs, train.epochs == 1 ? "" : "s", train.batch_size, train.learning_rate, schedule);
}

// The members of a prepared experiment, those that are asked for.
std::vector<Member> prepared_members(const std::vector<MemberKind>& kinds, const PreparedOptions& options) {
  std::vector<std::string_view> names;
  for (const MemberKind& kind : kinds) names.push_back(kind.name);
  for (const std::string& wanted : options.members)
    if (std::find(names.begin(), names.end(), wanted) == names.end())
      fail(fmt::format("unknown member {}", wanted), fmt::format("choose from {}", fmt::join(names, ", ")),
           "--members");
  const std::string path = options.data == "fmnist" ? kFashionMnist : options.data;
  const bool cifar = std::filesystem::exists(path + "/data_batch_1.bin");
  std::vector<int64_t> seeds = options.seeds;
  if (options.quick) seeds.resize(std::min(seeds.size(), size_t(1)));
  std::vector<Member> members;
  for (const MemberKind& kind : kinds) {
    if (!options.members.empty() &&
        std::find(options.members.begin(), options.members.end(), kind.name) == options.members.end())
      continue;
    for (const int64_t seed : seeds) {
      std::vector<std::string> overrides = {
          fmt::format("data.kind={}", cifar ? "cifar" : "idx"),
          fmt::format("train.epochs={}", options.quick ? 1 : options.epochs)};
      overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
      overrides.insert(overrides.end(), kind.overrides.begin(), kind.overrides.end());
      Member member{.name = kind.name,
                    .seed = seed,
                    .config = parse_config("", "experiment", overrides),
                    .overrides = {kind.overrides.begin(), kind.overrides.end()},
                    .reconstructs = kind.reconstructs};
      member.config.name = kind.name;
      member.config.seed = seed;
      member.config.data.path = path;
      members.push_back(member);
    }
  }
  return members;
}

// ---- sweeps ---------------------------------------------------------------------------------

void refuse_equal_members(const std::vector<Member>& members) {
  std::map<std::string, std::string> by_config;
  for (const Member& member : members) {
    Config config = member.config;
    config.name = "run";
    const auto [other, is_new] = by_config.emplace(to_toml(config), member.name);
    if (!is_new)
      fail(fmt::format("{} and {} are the same configuration", other->second, member.name),
           "give each value once", "-a");
  }
}

ChartAxes parse_chart(const std::string& text, const std::vector<SweepAxis>& axes) {
  const size_t comma = text.find(',');
  if (comma == text.npos)
    fail("a chart needs the form X,Y", "for example --chart seconds,mse", fmt::format("--chart {}", text));
  std::vector<std::string> names;
  for (const Figure& figure : figures()) names.push_back(figure.key);
  for (const SweepAxis& axis : axes) names.push_back(axis.key);
  const std::vector<std::string_view> views(names.begin(), names.end());
  const ChartAxes chart{text.substr(0, comma), text.substr(comma + 1)};
  for (const std::string& name : {chart.x, chart.y})
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      const std::string near = nearest_name(name, views);
      fail(fmt::format("{} is neither a figure of the report nor a key of an axis", name),
           near.empty() ? fmt::format("choose from {}", fmt::join(names, ", "))
                        : fmt::format("did you mean {}?", near),
           fmt::format("--chart {}", text));
    }
  for (const SweepAxis& axis : axes)
    for (const std::string& value : axis.values)
      if ((axis.key == chart.x || axis.key == chart.y) && !parse_number(value))
        fail(fmt::format("{} = {} has no place on a chart's axis", axis.key, value),
             "choose a key with numbers", fmt::format("--chart {}", text));
  return chart;
}

}  // namespace

Json RecognitionJob::to_json() const {
  Json json = Json::object();
  json["group"] = group;
  json["checkpoint"] = checkpoint;
  for (const std::string& feature : options.features) json["features"].push_back(feature);
  for (const std::string& head : options.heads) json["heads"].push_back(head);
  for (const int64_t labels : options.labels) json["labels"].push_back(labels);
  json["draws"] = options.draws;
  json["seed"] = int64_t(options.seed);
  return json;
}

std::string Member::directory() const { return fmt::format("runs/{}-seed{}", name, seed); }

ExperimentPlan plan_sweep(const SweepOptions& options) {
  ExperimentPlan plan{.kind = "sweep", .mse_levels = options.mse_levels};
  std::vector<SweepAxis> axes;
  for (const std::string& text : options.axes) axes.push_back(parse_axis(text));
  const Config base = load_config(options.config, options.overrides);
  plan.title = fmt::format("Sweep of {}", base.name);
  const std::vector<int64_t> seeds = options.seeds.empty() ? std::vector<int64_t>{base.seed} : options.seeds;
  if (axes.empty() && seeds.size() < 2)
    fail("a sweep needs an axis, or several seeds",
         "for example -a quantizer.codebook_size=256,512 or --seeds 0,1,2", "command line");
  for (const SweepPoint& point : multiply(axes))
    for (const int64_t seed : seeds) {
      std::vector<std::string> overrides = options.overrides;
      overrides.insert(overrides.end(), point.overrides.begin(), point.overrides.end());
      Member member{.name = point.name.empty() ? base.name : point.name,
                    .seed = seed,
                    .config = load_config(options.config, overrides),
                    .overrides = point.overrides};
      member.config.name = member.name;
      member.config.seed = seed;
      if (options.recognition) member.recognition = member_jobs(member, kBudgets);
      plan.members.push_back(member);
    }
  refuse_equal_members(plan.members);
  if (options.recognition)
    for (const RecognitionJob& job : baseline_jobs(kBudgets)) plan.members[0].recognition.push_back(job);
  for (const std::string& text : options.charts) plan.charts.push_back(parse_chart(text, axes));
  return plan;
}

ExperimentPlan plan_recognition(const PreparedOptions& options) {
  ExperimentPlan plan{.kind = "recognition",
                      .title = "Recognition with the features of trained models",
                      .members = prepared_members(recognition_kinds(), options),
                      .mse_levels = options.mse_levels};
  const std::vector<int64_t>& budgets = options.quick ? kQuickBudgets : kBudgets;
  bool has_random = false;
  for (Member& member : plan.members) {
    member.recognition = member_jobs(member, budgets);
    if (member.name != "vq_ema") continue;
    member.recognition.push_back(random_job(member.seed, budgets.back()));
    has_random = true;
  }
  for (const RecognitionJob& job : baseline_jobs(budgets)) plan.members[0].recognition.push_back(job);
  plan.notes = {shared_settings(plan.members),
                fmt::format("`{}` are features of the pixels alone.{}", kBaselineGroup,
                            has_random ? " `random` is the net of `vq_ema` before its first step." : "")};
  return plan;
}

ExperimentPlan plan_rate_distortion(const PreparedOptions& options) {
  ExperimentPlan plan{.kind = "rate_distortion",
                      .title = "Reconstruction by bits per image",
                      .members = prepared_members(rate_distortion_kinds(), options),
                      .mse_levels = options.mse_levels};
  plan.notes = {shared_settings(plan.members)};
  return plan;
}

}  // namespace vqlab
