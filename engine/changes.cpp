#include "changes.hpp"

#include <fmt/format.h>

#include <cmath>
#include <set>

#include "comparison_report.hpp"
#include "io/file.hpp"

namespace vqlab {
namespace {

constexpr int64_t kFewestSamples = 5;  // for quartiles that mean something
constexpr int64_t kMostBytes = int64_t(64) << 20;
constexpr const char* kStatuses[] = {"SLOW", "FAST", "SAME", "AMBG", "????"};

std::string key_of(const Json& row) {
  return fmt::format("{} {} {} {}", row.at("op").as_string(), row.at("variant").as_string(), shape_text(row),
                     row.at("dtype").as_string());
}

const Json* find_case(const Json& result, const std::string& key) {
  for (const Json& row : result.at("cases").items())
    if (key_of(row) == key) return &row;
  return nullptr;
}

// Throws Error(data) unless it has what is read here.
void require_comparison(const Json& json) {
  if (const Json* error = json.find("error"))
    throw Error(ErrorKind::data, "it holds an error: " + error->at("what").as_string(), "measure again");
  (void)json.at("device").as_string();
  (void)json.at("threads").as_integer();
  (void)json.at("ceilings").at("product_tflop_s");
  std::set<std::string> keys;
  for (const Json& row : json.at("cases").items()) {
    const Json& median = row.at("ms_median");
    if (row.at("shape").items().size() != 3 || !keys.insert(key_of(row)).second)
      throw Error(ErrorKind::data, "a case has no shape N,K,D, or comes twice: " + key_of(row),
                  "measure again");
    (void)row.at("status").as_string();
    (void)row.at("repro").as_string();
    if (median.is_null()) continue;
    for (const char* key : {"ms_median", "share_of_ceiling"})
      if (!(row.at(key).as_number() > 0.0))
        throw Error(ErrorKind::data, fmt::format("{} of {} is not positive", key, key_of(row)),
                    "measure again");
    (void)row.at("ms_iqr").as_number();
    (void)row.at("ms_min").as_number();
    (void)row.at("samples").as_integer();
  }
}

// Results from before these were kept have none, and are taken to agree.
std::string text_or(const Json& result, const char* key, const std::string& otherwise) {
  const Json* value = result.find(key);
  return value == nullptr || !value->is_string() ? otherwise : value->as_string();
}
bool is_hot(const Json& result) {
  const Json* hot = result.find("hot");
  return hot != nullptr && hot->is_bool() && hot->as_bool();
}

// Of a case, before and now.
struct Pair {
  const Json *before, *now;
  double old_of(const char* key) const { return before->at(key).as_number(); }
  double new_of(const char* key) const { return now->at(key).as_number(); }
};

double upper_quartile(const Json& row) {
  if (const Json* value = row.find("ms_q3")) return value->as_number();
  return row.at("ms_median").as_number() + 0.5 * row.at("ms_iqr").as_number();
}

// Half of the samples, relative to the median.
double spread(const Json& row) { return row.at("ms_iqr").as_number() / row.at("ms_median").as_number(); }

// Whether `slow` is slower than `fast` by more than both scatter, to its fastest sample.
bool apart(const Json& slow, const Json& fast) {
  const double ratio = slow.at("ms_median").as_number() / fast.at("ms_median").as_number();
  return ratio - 1.0 > spread(slow) + spread(fast) && slow.at("ms_min").as_number() > upper_quartile(fast);
}

const char* judge(const Pair& pair, double percent) {
  for (const Json* row : {pair.before, pair.now})
    if (row->at("samples").as_integer() < kFewestSamples) return "AMBG";
  const double limit = 1.0 + percent / 100.0, ratio = pair.new_of("ms_median") / pair.old_of("ms_median"),
               by_share = pair.old_of("share_of_ceiling") / pair.new_of("share_of_ceiling");
  const auto changed = [&](double r) { return r > limit ? 1 : r * limit < 1.0 ? -1 : 0; };
  if (changed(ratio) != changed(by_share)) return "AMBG";
  if (changed(ratio) == 0) return "SAME";
  if (changed(ratio) > 0) return apart(*pair.now, *pair.before) ? "SLOW" : "AMBG";
  return apart(*pair.before, *pair.now) ? "FAST" : "AMBG";
}

std::string why_not_timed(const Pair& pair) {
  if (pair.before == nullptr) return "not in the result before";
  if (pair.now == nullptr) return "not in the new result";
  for (const auto& [row, when] : {std::pair(pair.before, "before"), std::pair(pair.now, "now")})
    if (row->at("ms_median").is_null())
      return fmt::format(
          "not timed {}: {}", when,
          row->at("status").as_string() == "ok" ? "verified only" : row->at("status").as_string());
  return "";
}

Json change_of(const Pair& pair, const std::string& never, double percent) {
  const Json& row = pair.now != nullptr ? *pair.now : *pair.before;
  std::string why = why_not_timed(pair);
  if (why.empty()) why = never;
  const bool comparable = why.empty();
  Json json = Json::object();
  for (const char* key : {"op", "variant", "shape", "dtype"}) json[key] = row.at(key);
  json["status"] = comparable ? judge(pair, percent) : "????";
  json["why"] = comparable ? Json() : Json(why);
  const auto number = [&](const Json* side, const char* key) {
    return comparable ? Json(side->at(key).as_number()) : Json();
  };
  json["old_ms"] = number(pair.before, "ms_median");
  json["new_ms"] = number(pair.now, "ms_median");
  json["ratio"] = comparable ? Json(pair.new_of("ms_median") / pair.old_of("ms_median")) : Json();
  json["old_share"] = number(pair.before, "share_of_ceiling");
  json["new_share"] = number(pair.now, "share_of_ceiling");
  json["repro"] = row.at("repro");
  return json;
}

std::string percent_text(double ratio) { return fmt::format("{:+.1f}", 100.0 * (ratio - 1.0)); }

}  // namespace

Json read_comparison(const std::string& path) {
  const std::string text = read_file(path, kMostBytes);
  try {
    Json json = parse_json(text, path);
    require_comparison(json);
    return json;
  } catch (const Error& error) {
    throw Error(ErrorKind::data, fmt::format("this is no result of `vqlab compare --json`: {}", error.what()),
                "`vqlab compare --json > FILE.json` writes one", path);
  }
}

std::string why_incomparable(const Json& before, const Json& now) {
  const std::string &old_device = before.at("device").as_string(), &device = now.at("device").as_string();
  if (old_device != device) return fmt::format("measured on {}, now on {}", old_device, device);
  if (device == "cpu") {
    const std::string processor = text_or(now, "processor", ""),
                      old_processor = text_or(before, "processor", processor);
    if (!processor.empty() && old_processor != processor)
      return fmt::format("measured on {}, now on {}", old_processor, processor);
    const int64_t old_threads = before.at("threads").as_integer(), threads = now.at("threads").as_integer();
    if (old_threads != threads) return fmt::format("measured by {} threads, now by {}", old_threads, threads);
  }
  if (is_hot(before) != is_hot(now)) return "caches were cold in one, warm in the other";
  if (before.at("ceilings").at("product_tflop_s").is_null() !=
      now.at("ceilings").at("product_tflop_s").is_null())
    return "shares are of the fp32 product in one only";
  return "";
}

Json compare_results(const Json& before, const Json& now, double percent, const std::string& old_path,
                     const std::string& new_path) {
  const std::string never = why_incomparable(before, now);
  Json json = Json::object(), cases = Json::array();
  json["old"] = old_path;
  json["new"] = new_path;
  json["percent"] = percent;
  for (const Json& row : now.at("cases").items())
    cases.push_back(change_of({find_case(before, key_of(row)), &row}, never, percent));
  for (const Json& row : before.at("cases").items())
    if (find_case(now, key_of(row)) == nullptr) cases.push_back(change_of({&row, nullptr}, never, percent));
  for (const char* status : kStatuses) {
    int64_t count = 0;
    for (const Json& row : cases.items()) count += row.at("status").as_string() == status;
    json["counts"][status] = count;
  }
  json["cases"] = cases;
  if (json.at("counts").at("????").as_integer() < int64_t(cases.items().size())) return json;
  throw Error(ErrorKind::usage,
              fmt::format("no case of {} and {} can be compared: {}", old_path, new_path,
                          !never.empty()          ? never
                          : cases.items().empty() ? "there is none"
                                                  : cases.items()[0].at("why").as_string()),
              "measure the same cases twice, on one machine and in the same way", "compare");
}

Table change_table(const Json& changes) {
  Table table{.caption = "",
              .head = {"op", "variant", "N,K,D", "old ms", "new ms", "change in %", "% of ceiling, old",
                       "new", "status"},
              .rows = {},
              .text_columns = 3};
  for (const Json& row : changes.at("cases").items()) {
    const bool comparable = row.at("why").is_null();
    const auto share = [&](const char* key) {
      return comparable ? fmt::format("{:.1f}", 100.0 * row.at(key).as_number()) : "-";
    };
    const auto ms = [&](const char* key) {
      return comparable ? fmt::format("{:.4g}", row.at(key).as_number()) : "-";
    };
    table.rows.push_back({{row.at("op").as_string(), ""},
                          {row.at("variant").as_string(), ""},
                          {shape_text(row), ""},
                          {ms("old_ms"), ""},
                          {ms("new_ms"), ""},
                          {comparable ? percent_text(row.at("ratio").as_number()) : "-", ""},
                          {share("old_share"), ""},
                          {share("new_share"), ""},
                          {row.at("status").as_string(), comparable ? "" : row.at("why").as_string()}});
  }
  return table;
}

std::string change_rule(const Json& changes) {
  const double percent = changes.at("percent").as_number();
  return fmt::format(
      "Old: `{}`. SLOW: the median and the share of the ceiling are both worse by more than {} %, by more "
      "than "
      "both interquartile ranges, and every new sample is above the old upper quartile. FAST: the reverse. "
      "SAME: "
      "neither has changed by more. AMBG: within the spread, or times and shares disagree. ????: not "
      "comparable.",
      changes.at("old").as_string(), percent);
}

std::string change_counts(const Json& changes) {
  std::string text;
  for (const auto& [status, count] : changes.at("counts").members())
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count.as_integer(), status);
  return text;
}

}  // namespace vqlab
