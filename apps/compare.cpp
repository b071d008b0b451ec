#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "command.hpp"
#include "compare_print.hpp"
#include "engine/changes.hpp"
#include "engine/comparison_report.hpp"
#include "engine/io/file.hpp"
#include "engine/shape_sets.hpp"
#include "engine/trust.hpp"
#include "engine/tuning.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

Error usage(const std::string& what, const std::string& hint, const std::string& where = "compare") {
  return Error(ErrorKind::usage, what, hint, where);
}

// Some variants of an op at one shape.
struct Job {
  const VariantOp* op;
  std::vector<VariantInfo> variants;
  NamedShape shape;
};

class CompareCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positionals("results", results_, "OLD.json NEW.json: compare two results, and measure nothing");
    o.list("op", op_texts_, "ops OP,... to compare, or all; lookup if not given");
    o.list("variant", variant_texts_, "variants V,... to compare; all of the device if not given");
    o.list("shape", shape_texts_, "N,K,D: latents, codes, elements of a code; repeatable");
    o.list("shapes", set_texts_, "sets of shapes: S1 to S5, or CONFIG.toml for those of its batches");
    o.option("dtype", dtype_, "of latents and codebook: fp32");
    o.option("seconds", seconds_, 0, 600,
             "time-out of the timing of one variant at one shape; 0: one sample");
    o.flag("hot", hot_, "leave the caches warm between samples");
    o.flag("verify", verify_, "verify each variant, run it twice more, and time nothing");
    o.flag("list", list_, "show the variants and what they are, and stop");
    o.option("csv", csv_, "write the cases into this file");
    o.option("html", html_, "write a page with tables and charts into this file");
    o.option("against", against_, "OLD.json: measure what it measured, or what is said, and compare");
    o.option("threshold", threshold_, 1, 1000, "percent from which a change counts, if it exceeds the noise");
    o.flag("tune", tune_, "keep the fastest exact variant of each op and shape for runs on this machine");
  }

  CommandResult run(const CommonOptions& common) override;

 private:
  void check_options() const;
  CommandResult compare_files(const CommonOptions& common) const;
  Json list_variants(const CommonOptions& common) const;
  std::vector<const VariantOp*> wanted_ops(const Json& before) const;
  std::vector<NamedShape> wanted_shapes(const VariantOp& op, const Json& before) const;
  std::vector<Job> plan(const Runtime& runtime, const Json& before) const;
  Json narrowed(const Json& before, const std::vector<Job>& jobs) const;
  void report_wrong(const Json& row) const;
  void tune(const Runtime& runtime, const std::vector<TunedChoice>& choices, Json& json, bool quiet) const;

  std::vector<std::string> results_, op_texts_, variant_texts_, shape_texts_, set_texts_;
  std::string dtype_ = "fp32", csv_, html_, against_;
  int64_t seconds_ = 5, threshold_ = kLeastChange;
  bool hot_ = false, verify_ = false, list_ = false, tune_ = false;
};

void CompareCommand::check_options() const {
  if (dtype_ != "fp32")
    throw usage(fmt::format("there are no variants for operands in {}", dtype_),
                "latents and codebook are fp32; what a variant computes in inside, `--list` says", "--dtype");
  if (!results_.empty() && results_.size() != 2)
    throw usage(fmt::format("{} is one result, and two are compared", results_[0]),
                "give OLD.json and NEW.json, or measure now with --against OLD.json");
  const bool measures = !op_texts_.empty() || !variant_texts_.empty() || !shape_texts_.empty() ||
                        !set_texts_.empty() || hot_ || verify_ || list_ || tune_ || !csv_.empty() ||
                        !html_.empty() || !against_.empty();
  if (!results_.empty() && measures)
    throw usage("two results are compared as they are", "leave out all options but --threshold and --json");
  if (!against_.empty() && verify_)
    throw usage("--verify times nothing that could be compared", "leave out --verify or --against",
                "--against");
  if (!tune_) return;
  if (verify_) throw usage("--verify times nothing to choose by", "leave out --verify or --tune", "--tune");
  if (!variant_texts_.empty())
    throw usage("the choice is among all variants of an op", "leave out --variant", "--tune");
  if (shape_texts_.empty() && set_texts_.empty())
    throw usage("--tune needs the shapes that will be used",
                "--shapes CONFIG.toml takes those of a configuration, --shape N,K,D others", "--tune");
}

// A result that cannot be written is a pity after minutes of measuring.
void require_place_for(const std::string& path, const char* option) {
  if (path.empty()) return;
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  if (!std::filesystem::is_directory(folder) || std::filesystem::is_directory(path))
    throw usage(fmt::format("{} cannot be written", path), "name a file in a folder that exists", option);
}

CommandResult CompareCommand::compare_files(const CommonOptions& common) const {
  const Json before = read_comparison(results_[0]), now = read_comparison(results_[1]);
  CommandResult command;
  command.json = compare_results(before, now, double(threshold_), results_[0], results_[1]);
  command.exit_code = print_changes(command.json, common.json);
  return command;
}

// Without --device those of every device, also of one that is not there.
Json CompareCommand::list_variants(const CommonOptions& common) const {
  Json rows = Json::array();
  for (const VariantOp* op : wanted_ops(Json()))
    for (const Device device : {Device::cpu, Device::cuda}) {
      if (common.device != "auto" && common.device != device_text(device)) continue;
      for (const VariantInfo& variant : op->variants(device)) {
        if (!common.json)
          fmt::print("{:12} {:4}  {:13} {:16} {}\n", op->name, device_text(device), variant.name,
                     exactness(*op, variant), variant.idea);
        Json row = Json::object();
        row["op"] = op->name;
        row["device"] = device_text(device);
        row["variant"] = variant.name;
        row["exact"] = variant.exact;
        row["idea"] = variant.idea;
        rows.push_back(row);
      }
    }
  Json result = Json::object();
  result["variants"] = rows;
  return result;
}

// Those of --op; else those of an earlier result, those that decide a choice, or the lookup.
std::vector<const VariantOp*> CompareCommand::wanted_ops(const Json& before) const {
  std::vector<const VariantOp*> ops;
  const auto add = [&](const VariantOp* op) {
    if (std::find(ops.begin(), ops.end(), op) == ops.end()) ops.push_back(op);
  };
  bool all = false;
  for (const std::string& text : op_texts_)
    for (const std::string_view name : split_text(text, ','))
      name == "all" ? void(all = true) : add(&find_variant_op(name));
  for (const VariantOp* op : variant_ops()) {
    bool measured = false;
    if (op_texts_.empty() && before.is_object())
      for (const Json& row : before.at("cases").items()) measured |= row.at("op").as_string() == op->name;
    if (all || measured || (op_texts_.empty() && tune_ && !op->decides.empty())) add(op);
  }
  if (ops.empty()) add(&find_variant_op("lookup"));
  return ops;
}

// Those of --shape and --shapes; else those of an earlier result, or three that a CPU can do in seconds.
std::vector<NamedShape> CompareCommand::wanted_shapes(const VariantOp& op, const Json& before) const {
  std::vector<NamedShape> shapes;
  const auto add = [&](const NamedShape& shape) {
    for (const NamedShape& other : shapes)
      if (other.shape.text() == shape.shape.text()) return;
    shapes.push_back(shape);
  };
  for (const std::string& text : shape_texts_) add(parse_shape(text));
  for (const std::string& text : set_texts_)
    for (const NamedShape& shape : shape_set(text)) add(shape);
  if (!shapes.empty()) return shapes;
  if (before.is_object())
    for (const Json& row : before.at("cases").items())
      if (row.at("op").as_string() == op.name) add(parse_shape(shape_text(row)));
  if (!shapes.empty()) return shapes;
  return {{{65536, 512, 64}}, {{16384, 8192, 64}}, {{65536, 1024, 8}}};
}

std::vector<Job> CompareCommand::plan(const Runtime& runtime, const Json& before) const {
  const std::vector<const VariantOp*> ops = wanted_ops(before);
  if (ops.size() > 1 && !variant_texts_.empty())
    throw usage("variants are of one op", "name it with --op, or leave out --variant", "--variant");
  for (const VariantOp* op : ops)
    if (tune_ && op->decides.empty())
      throw usage(fmt::format("no run chooses a kernel by {}", op->name),
                  "leave out --op: those that are chosen by are measured", "--tune");
  std::vector<Job> jobs;
  for (const VariantOp* op : ops) {
    std::vector<VariantInfo> variants;
    for (const std::string& text : variant_texts_)
      for (const std::string_view name : split_text(text, ','))
        variants.push_back(find_variant(*op, runtime.device(), name));
    if (variants.empty()) variants = op->variants(runtime.device());
    for (const NamedShape& shape : wanted_shapes(*op, before)) {
      require_memory_for(*op, shape.shape, runtime);
      jobs.push_back({op, variants, shape});
    }
  }
  return jobs;
}

// An earlier result without what the command line leaves out.
Json CompareCommand::narrowed(const Json& before, const std::vector<Job>& jobs) const {
  Json json = before, cases = Json::array();
  for (const Json& row : before.at("cases").items()) {
    const auto is_wanted = [&](const Job& job) {
      const bool op = job.op->name == row.at("op").as_string();
      const bool shape = job.shape.shape.text() == shape_text(row);
      bool variant = variant_texts_.empty();
      for (const VariantInfo& info : job.variants) variant |= info.name == row.at("variant").as_string();
      return (op || op_texts_.empty()) && (shape || (shape_texts_.empty() && set_texts_.empty())) && variant;
    };
    if (std::any_of(jobs.begin(), jobs.end(), is_wanted)) cases.push_back(row);
  }
  json["cases"] = cases;
  return json;
}

void CompareCommand::report_wrong(const Json& row) const {
  fmt::print(stderr, "error: {} variant '{}' is wrong on {} of {} rows (--shape {})\n",
             row.at("op").as_string(), row.at("variant").as_string(), row.at("wrong").as_integer(),
             row.at("rows_checked").as_integer(), shape_text(row));
  fmt::print(stderr, "hint: use another variant; `{}` repeats this\n", row.at("repro").as_string());
}

void CompareCommand::tune(const Runtime& runtime, const std::vector<TunedChoice>& choices, Json& json,
                          bool quiet) const {
  Tuning tuning(tuning_key(runtime), cache_folder());
  if (!tuning.note().empty()) fmt::print(stderr, "note: {}\n", tuning.note());
  tuning.keep(choices);
  json["tuned"] = Json::array();
  for (const TunedChoice& choice : choices) {
    json["tuned"].push_back(choice.to_json());
    if (!quiet) fmt::print("chosen: {}\n", tuned_text(choice));
  }
  json["tuned_file"] = tuning.path();
  if (!quiet) fmt::print("kept in {}\n", tuning.path());
}

CommandResult CompareCommand::run(const CommonOptions& common) {
  check_options();
  if (!results_.empty()) return compare_files(common);
  if (list_) return {.json = list_variants(common)};
  require_place_for(csv_, "--csv");
  require_place_for(html_, "--html");
  const Json before = against_.empty() ? Json() : read_comparison(against_);
  const Runtime runtime(common.device, int(common.threads));
  const std::vector<Job> jobs = plan(runtime, before);
  if (before.is_object() && narrowed(before, jobs).at("cases").items().empty())
    throw usage(fmt::format("{} has none of the cases that are to be measured", against_),
                "leave out --op, --variant and --shape, or measure without --against", "--against");
  const std::unique_ptr<Trust> trust = tune_ ? trust_of_this_program(common.device) : nullptr;

  const Ceilings ceilings = verify_ ? Ceilings() : measure_ceilings(runtime, std::min(1.0, double(seconds_)));
  const ComparisonOptions options{.seconds = double(seconds_), .hot = hot_, .timed = !verify_};
  CommandResult command;
  command.json = comparison_head(runtime, verify_ ? nullptr : &ceilings, options, common.command_line);
  if (const std::string why = before.is_object() ? why_incomparable(before, command.json) : ""; !why.empty())
    throw usage(fmt::format("this run could not be compared with {}: {}", against_, why),
                "measure on the same device, with the same --threads and --hot", "--against");
  if (!common.json && !verify_) print_comparison_head(command.json, ceilings.product_problem);
  std::vector<TunedChoice> choices;
  for (const Job& job : jobs) {
    const auto results = compare_variants(*job.op, job.variants, job.shape.shape, ceilings, options, runtime);
    for (const VariantResult& result : results) {
      const Json row = to_json(*job.op, result, job.shape.name, options);
      if (!common.json) print_case(row);
      if (result.status == "WRONG") {
        command.exit_code = int(ErrorKind::verification);
        report_wrong(row);
      }
      command.json["cases"].push_back(row);
    }
    const auto trusted = [&](std::string_view variant) {
      return trust == nullptr || trust->verdict(job.op->decides, variant).passed;
    };
    if (!tune_) continue;
    if (const auto choice = fastest_variant(*job.op, results, trusted)) choices.push_back(*choice);
  }
  if (tune_) tune(runtime, choices, command.json, common.json);
  if (before.is_object()) {
    command.json["changes"] =
        compare_results(narrowed(before, jobs), command.json, double(threshold_), against_, "this run");
    command.exit_code = std::max(command.exit_code, print_changes(command.json["changes"], common.json));
  }
  if (!csv_.empty()) write_file(csv_, comparison_csv(command.json));
  if (!html_.empty()) write_file(html_, to_html(comparison_document(command.json)));
  return command;
}

}  // namespace

extern const CommandEntry command_compare;
const CommandEntry command_compare{
    "compare",
    "verifies the variants of an op against its definition, then times them beside what the machine can do",
    []() -> std::unique_ptr<Command> { return std::make_unique<CompareCommand>(); }};

}  // namespace vqlab
