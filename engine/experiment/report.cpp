#include "report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "engine/environment.hpp"
#include "engine/io/file.hpp"
#include "figures.hpp"

namespace vqlab {
namespace {

std::string plural(size_t count, const std::string& one) {
  return fmt::format("{} {}{}", count, one, count == 1 ? "" : "s");
}

// ---- the summary
// -------------------------------------------------------------------------------------------

Json run_json(const Member& member, const MemberOutcome& outcome, const std::string& directory) {
  Json json = Json::object();
  json["name"] = member.name;
  json["seed"] = member.seed;
  json["run"] = directory + "/" + member.directory();
  json["state"] = outcome.result.is_object() ? "done" : outcome.failure.empty() ? "pending" : "failed";
  if (!outcome.failure.empty()) json["failure"] = outcome.failure;
  if (outcome.result.is_object())
    for (const auto& [key, value] : outcome.result.members())
      if (key != "name" && key != "seed" && key != "format") json[key] = value;
  return json;
}

Json group_json(const ExperimentPlan& plan, const ExperimentOutcome& outcome, const std::string& name) {
  std::map<std::string, Summary> sums;
  std::vector<Summary> until(plan.mse_levels.size());
  Json json = Json::object(), seeds = Json::array(), overrides = Json::array();
  json["name"] = name;
  int64_t planned = 0;
  for (size_t i = 0; i < plan.members.size(); ++i) {
    const Member& member = plan.members[i];
    if (member.name != name) continue;
    if (planned++ == 0) {
      for (const std::string& text : member.overrides) overrides.push_back(text);
      json["overrides"] = overrides;
      json["quantizer"] = member.config.quantizer.kind;
      json["reconstructs"] = member.reconstructs;
      json["classifier_labels"] = member.config.data.labels;  // that its own classifier saw; 0 = all
      json["latent_floats"] = Json();
    }
    const Json& result = outcome.members[i].result;
    if (!result.is_object()) continue;
    seeds.push_back(member.seed);
    if (const Json* floats = result.find("latent_floats")) json["latent_floats"] = *floats;
    for (const Figure& figure : figures())
      if (const auto value = value_of(figure, result);
          value && (member.reconstructs || !figure.of_reconstruction))
        sums[figure.key].add(*value);
    for (size_t l = 0; l < until.size(); ++l)
      if (const auto seconds = seconds_until(result, plan.mse_levels[l]); seconds && member.reconstructs)
        until[l].add(*seconds);
  }
  json["planned"] = planned;
  json["seeds"] = seeds;
  for (const Figure& figure : figures()) json["figures"][figure.key] = sums[figure.key].to_json();
  json["seconds_until"] = Json::array();
  for (size_t l = 0; l < until.size(); ++l) {
    Json entry = Json::object();
    entry["mse"] = plan.mse_levels[l];
    entry["seconds"] = until[l].to_json();
    json["seconds_until"].push_back(entry);
  }
  return json;
}

// Means over seeds; ranges over seeds and the label sets drawn for each. In the order in which they first
// come, those of other groups than the members' own last.
Json recognition_json(const ExperimentPlan& plan, const ExperimentOutcome& outcome) {
  struct Row {
    Json json;
    Summary accuracy;
  };
  std::vector<Row> own, others;
  std::set<std::string> names;
  for (const Member& member : plan.members) names.insert(member.name);
  for (const MemberOutcome& member : outcome.members) {
    const Json* rows = member.result.find("rows");
    if (rows == nullptr) continue;
    for (const Json& row : rows->items()) {
      Json key = Json::object();
      for (const char* part : {"group", "feature", "head", "labels"}) key[part] = row.at(part);
      std::vector<Row>& list = names.contains(row.at("group").as_string()) ? own : others;
      auto it = std::find_if(list.begin(), list.end(),
                             [&](const Row& other) { return other.json.dump() == key.dump(); });
      if (it == list.end()) it = list.insert(list.end(), {key, {}});
      it->accuracy.add(row.at("accuracy").as_number(), row.at("accuracy_min").as_number(),
                       row.at("accuracy_max").as_number());
    }
  }
  own.insert(own.end(), others.begin(), others.end());
  Json json = Json::array();
  for (Row& row : own) {
    row.json["accuracy"] = row.accuracy.to_json();
    json.push_back(row.json);
  }
  return json;
}

// ---- its document
// ------------------------------------------------------------------------------------------

std::string range_text(const std::string& key, const Summary& summary) {
  if (summary.low == summary.high) return "";
  return fmt::format("{} - {}", format_figure(key, summary.low), format_figure(key, summary.high));
}

// A column for each figure that was measured on any group.
Table figure_table(const Json& report, const std::string& caption, const std::vector<std::string>& keys) {
  Table table{.caption = caption, .head = {"member"}, .rows = {}};
  std::vector<std::string> shown;
  for (const std::string& key : keys) {
    bool measured = false;
    for (const Json& group : report.at("groups").items()) measured |= !group.at("figures").at(key).is_null();
    if (!measured) continue;
    shown.push_back(key);
    table.head.push_back(find_figure(key)->title);
  }
  for (const Json& group : report.at("groups").items()) {
    std::vector<Cell> row = {{group.at("name").as_string(), ""}};
    for (const std::string& key : shown) row.push_back(figure_cell(key, group.at("figures").at(key)));
    table.rows.push_back(row);
  }
  return table;
}

Table training_table(const Json& report) {
  Table table = figure_table(report, "", {"seconds", "images_per_second"});
  for (const Json& level : report.at("mse_levels").items())
    table.head.push_back(fmt::format("s until MSE {}", level.as_number()));
  table.head.push_back("seeds done");
  size_t r = 0;
  for (const Json& group : report.at("groups").items()) {
    std::vector<Cell>& row = table.rows[r++];
    const size_t done = group.at("seeds").items().size();
    for (const Json& level : group.at("seconds_until").items()) {
      row.push_back(figure_cell("seconds", level.at("seconds")));
      const int64_t reached = summary_from(level.at("seconds")).count;
      if (reached > 0 && reached < int64_t(done))
        row.back().range += fmt::format("{}{} of {}", row.back().range.empty() ? "" : "; ", reached, done);
    }
    row.push_back({fmt::format("{} of {}", done, group.at("planned").as_integer()), ""});
  }
  return table;
}

std::string labels_text(int64_t labels) {
  return labels == 0 ? "all labels" : fmt::format("{} labels", labels);
}

Table recognition_table(const Json& report) {
  Table table{.caption = "Test accuracy in %", .head = {"member, feature, head"}, .rows = {}};
  std::set<int64_t> budgets;
  for (const Json& row : report.at("recognition").items()) budgets.insert(row.at("labels").as_integer());
  for (const Json& group : report.at("groups").items())
    if (!group.at("figures").at("accuracy").is_null())
      budgets.insert(group.at("classifier_labels").as_integer());
  std::vector<int64_t> columns(budgets.upper_bound(0), budgets.end());
  if (budgets.contains(0)) columns.push_back(0);  // "all" comes last
  for (const int64_t labels : columns) table.head.push_back(labels_text(labels));
  std::vector<std::string> names;
  const auto put = [&](const std::string& name, int64_t labels, const Json& accuracy) {
    size_t r = size_t(std::find(names.begin(), names.end(), name) - names.begin());
    if (r == names.size()) {
      names.push_back(name);
      table.rows.emplace_back(columns.size() + 1, Cell{"-", ""});
      table.rows[r][0].text = name;
    }
    const size_t c = size_t(std::find(columns.begin(), columns.end(), labels) - columns.begin());
    table.rows[r][c + 1] = figure_cell("percent", accuracy);
  };
  for (const Json& row : report.at("recognition").items())
    put(row_name(row), row.at("labels").as_integer(), row.at("accuracy"));
  for (const Json& group : report.at("groups").items())
    if (const Json& accuracy = group.at("figures").at("accuracy"); !accuracy.is_null())
      put(group.at("name").as_string() + ", own classifier", group.at("classifier_labels").as_integer(),
          accuracy);
  return table;
}

Table member_table(const Json& report) {
  Table table{
      .caption = "", .head = {"member", "what sets it apart", "seeds"}, .rows = {}, .text_columns = 3};
  for (const Json& group : report.at("groups").items()) {
    std::vector<std::string> overrides, seeds;
    for (const Json& text : group.at("overrides").items())
      overrides.push_back(fmt::format("`{}`", text.as_string()));
    for (const Json& seed : group.at("seeds").items()) seeds.push_back(fmt::format("{}", seed.as_integer()));
    table.rows.push_back({{group.at("name").as_string(), ""},
                          {overrides.empty() ? "-" : fmt::format("{}", fmt::join(overrides, ", ")), ""},
                          {seeds.empty() ? "-" : fmt::format("{}", fmt::join(seeds, ", ")), ""}});
  }
  return table;
}

// How the figures came about: the rules of a fair comparison, as far as they apply.
std::vector<std::string> method_notes(const Json& report) {
  std::set<std::string> machines, images;
  for (const Json& run : report.at("runs").items()) {
    if (run.at("state").as_string() != "done") continue;
    machines.insert(
        fmt::format("{}, {} threads", run.at("device").as_string(), run.at("threads").as_integer()));
    images.insert(fmt::format("{}", run.at("test").at("images").as_integer()));
  }
  std::vector<std::string> notes;
  if (images.empty()) return notes;
  notes.push_back(fmt::format(
      "MSE, PSNR and SSIM are over the whole test split ({} images), pixels on [0, 1], unclamped. The PSNR "
      "of the "
      "mean MSE and the mean of the images' own PSNR differ; both are given. Codes used and perplexity count "
      "every "
      "code of the test split; bits per image are codes x log2(codes there are) (nominal) and codes x "
      "log2(perplexity) (entropy).",
      fmt::join(images, ", ")));
  notes.push_back(
      fmt::format("Seconds are wall-clock time of training steps alone: no evaluation, checkpoint or start. "
                  "`s until MSE` "
                  "refers to the validation images at the ends of epochs. Measured on: {}. Other load on the "
                  "machine counts.",
                  fmt::join(machines, "; ")));
  if (!report.at("recognition").items().empty())
    notes.push_back(
        "Recognition: the heads alone see labels, their settings are chosen on held-out training images, and "
        "the "
        "test split is looked at once. Ranges are over seeds and over the label sets drawn for a budget.");
  for (const Json& group : report.at("groups").items())
    if (!group.at("reconstructs").as_bool())
      notes.push_back(
          fmt::format("`{}` is not trained to reconstruct; its reconstruction figures are left out.",
                      group.at("name").as_string()));
  return notes;
}

template <class T>
void append(Document& document, std::vector<T> blocks) {
  for (T& block : blocks) document.blocks.push_back(std::move(block));
}

}  // namespace

std::string row_name(const Json& row) {
  return fmt::format("{}, {}, {}", row.at("group").as_string(), row.at("feature").as_string(),
                     row.at("head").as_string());
}

Cell figure_cell(const std::string& key, const Json& summary) {
  const Summary s = summary_from(summary);
  if (s.count == 0) return {"-", ""};
  return {format_figure(key, s.mean), range_text(key, s)};
}

Json summarise(const ExperimentPlan& plan, const ExperimentOutcome& outcome,
               const ExperimentOptions& options) {
  Json json = Json::object(), notes = Json::array(), levels = Json::array(), groups = Json::array(),
       runs = Json::array();
  json["experiment"] = plan.kind;
  json["title"] = plan.title;
  json["vqlab"] = version();
  json["command"] = options.command;
  for (const std::string& note : plan.notes) notes.push_back(note);
  json["notes"] = notes;
  bool complete = true;
  std::vector<std::string> names;
  for (size_t i = 0; i < plan.members.size(); ++i) {
    runs.push_back(run_json(plan.members[i], outcome.members[i], options.directory));
    complete &= outcome.members[i].result.is_object();
    const std::string& name = plan.members[i].name;
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  for (const std::string& name : names) groups.push_back(group_json(plan, outcome, name));
  for (const double level : plan.mse_levels) levels.push_back(level);
  json["complete"] = complete;
  json["mse_levels"] = levels;
  json["groups"] = groups;
  json["recognition"] = recognition_json(plan, outcome);
  json["runs"] = runs;
  json["report"] = options.directory + "/report.md";
  return json;
}

Document make_document(const ExperimentPlan& plan, const Json& report) {
  Document document{.title = report.at("title").as_string(), .blocks = {}};
  size_t done = 0;
  for (const Json& run : report.at("runs").items()) done += run.at("state").as_string() == "done";
  const size_t all = report.at("runs").items().size();
  document.blocks.push_back(
      Paragraph{fmt::format("{} of {}. Figures are means over seeds, with the least and the greatest value "
                            "beside or below; a dash is a "
                            "figure that was not measured or does not exist.",
                            plural(all, "run"), plural(report.at("groups").items().size(), "member"))});
  if (done < all)
    document.blocks.push_back(
        Paragraph{fmt::format("Not complete: {} of {} runs are done. The same command goes on.", done, all)});
  for (const Json& run : report.at("runs").items())
    if (const Json* failure = run.find("failure"))
      document.blocks.push_back(Paragraph{fmt::format("`{}`, seed {} failed: {}", run.at("name").as_string(),
                                                      run.at("seed").as_integer(), failure->as_string())});
  document.blocks.push_back(Heading{"Reconstruction and codes"});
  document.blocks.push_back(
      figure_table(report, "On the test split",
                   {"mse", "psnr_db", "psnr_db_mean", "ssim", "bits_per_image_nominal",
                    "bits_per_image_entropy", "codes_used", "codebook_size", "perplexity"}));
  append(document, figure_pictures(plan, report));
  if (Table table = recognition_table(report); !table.rows.empty()) {
    document.blocks.push_back(Heading{"Recognition"});
    document.blocks.push_back(table);
    append(document, recognition_pictures(report));
  }
  document.blocks.push_back(Heading{"Training"});
  document.blocks.push_back(training_table(report));
  append(document, training_pictures(report));
  document.blocks.push_back(Heading{"Members"});
  document.blocks.push_back(member_table(report));
  document.blocks.push_back(Heading{"How it was measured"});
  for (const Json& note : report.at("notes").items()) document.blocks.push_back(Paragraph{note.as_string()});
  for (const std::string& note : method_notes(report)) document.blocks.push_back(Paragraph{note});
  document.blocks.push_back(Paragraph{
      fmt::format("vqlab {}: `{}`", report.at("vqlab").as_string(), report.at("command").as_string())});
  return document;
}

void write_report(const ExperimentPlan& plan, const Json& report, const std::string& directory) {
  const Document document = make_document(plan, report);
  const std::pair<const char*, std::string> files[] = {{"report.json", report.dump(2) + "\n"},
                                                       {"report.md", to_markdown(document)},
                                                       {"report.html", to_html(document)}};
  for (const auto& [name, text] : files) {
    const std::string path = directory + "/" + name;
    write_file_durably(path + ".tmp", text);
    rename_durably(path + ".tmp", path);
  }
}

std::string final_table(const Json& report) {
  std::string text = to_text(figure_table(report, "",
                                          {"mse", "psnr_db", "ssim", "bits_per_image_entropy", "codes_used",
                                           "perplexity", "accuracy", "seconds", "images_per_second"}));
  if (const Table table = recognition_table(report); !table.rows.empty())
    text += fmt::format("\n{}", to_text(table));
  return text;
}

}  // namespace vqlab
