// What becomes of the measurements of `compare`: two results compared, files, pages; and sets of shapes.

#include "desk.hpp"
#include "engine/changes.hpp"
#include "engine/comparison_charts.hpp"
#include "engine/comparison_report.hpp"
#include "engine/experiment/charts.hpp"
#include "engine/io/file.hpp"
#include "engine/shape_sets.hpp"
#include "expect_error.hpp"
#include "html.hpp"
#include "kernels/codebook/lookup.hpp"

namespace vqlab::testing {
namespace {

using Catch::Matchers::Contains;

// A case that took `ms` with quartiles at +- spread, and reached `share` of its ceiling.
struct Measured {
  double ms = 10.0, spread = 0.01, share = 0.5, least = 0.98;
  int64_t samples = 20;
  const char *variant = "fused", *status = "ok";
};

Json case_of(const Measured& m) {
  const VariantResult result{.variant = {m.variant, "an idea, in two words", Device::cpu, true, true},
                             .shape = {100, 16, 4},
                             .status = m.status,
                             .rows_checked = 100,
                             .timing = Timing{.median_ms = m.ms,
                                              .q1_ms = m.ms * (1.0 - m.spread),
                                              .q3_ms = m.ms * (1.0 + m.spread),
                                              .iqr_ms = m.ms * 2.0 * m.spread,
                                              .min_ms = m.ms * m.least,
                                              .samples = m.samples},
                             .gb_s = 1.0,
                             .tflop_s = 0.1 * m.share,
                             .copy_gb_s = 10.0,
                             .product_tflop_s = 0.1,
                             .share = m.share};
  return to_json(find_variant_op("lookup"), result, "", {});
}

Json result_of(const std::vector<Measured>& cases) {
  const Runtime cpu("cpu", 1);
  const Ceilings ceilings{.copy_gb_s = 10.0, .product_tflop_s = 0.1};
  Json json = comparison_head(cpu, &ceilings, {}, "vqlab compare");
  for (const Measured& m : cases) json["cases"].push_back(case_of(m));
  return json;
}

std::string status_of(const Measured& before, const Measured& now) {
  const Json changes = compare_results(result_of({before}), result_of({now}), kLeastChange, "old", "new");
  return changes.at("cases").items().at(0).at("status").as_string();
}

std::string written(const TemporaryDirectory& folder, const std::string& name, const Json& json) {
  write_file(folder / name, json.dump());
  return folder / name;
}

}  // namespace

// ---- two results ----

TEST_CASE("compare: a change counts beyond the noise and in time and share alike", "[unit]") {
  const Measured before;
  CHECK(status_of(before, before) == "SAME");
  CHECK(status_of(before, {.ms = 10.4, .share = 0.5 / 1.04}) == "SAME");
  CHECK(status_of(before, {.ms = 12.0, .share = 0.5 / 1.2}) == "SLOW");
  CHECK(status_of(before, {.ms = 10.0 / 1.2, .share = 0.6}) == "FAST");
  // 20 % are no more than the two interquartile ranges together.
  CHECK(status_of({.spread = 0.05}, {.ms = 12.0, .spread = 0.06, .share = 0.5 / 1.2}) == "AMBG");
  CHECK(status_of({.spread = 0.05}, {.ms = 10.0 / 1.2, .spread = 0.06, .share = 0.6}) == "AMBG");
  // One sample was as fast as three quarters of the others: 12 * 0.84 = 10.08 < 10.1.
  CHECK(status_of(before, {.ms = 12.0, .share = 0.5 / 1.2, .least = 0.84}) == "AMBG");
  CHECK(status_of({.least = 0.84}, {.ms = 10.0 / 1.2, .share = 0.6}) == "AMBG");
  CHECK(status_of(before, {.ms = 12.0}) == "AMBG");                // the whole machine is slower
  CHECK(status_of(before, {.share = 0.5 / 1.2}) == "AMBG");        // its ceilings are faster
  CHECK(status_of(before, {.ms = 12.0, .share = 0.6}) == "AMBG");  // opposite
  CHECK(status_of({.samples = 4}, before) == "AMBG");
  CHECK(status_of(before, {.ms = 20.0, .share = 0.25, .samples = 4}) == "AMBG");
  CHECK(status_of({.samples = 5}, {.ms = 12.0, .share = 0.5 / 1.2, .samples = 5}) == "SLOW");
  const Json strict =
      compare_results(result_of({{.spread = 0.005}}),
                      result_of({{.ms = 10.4, .spread = 0.005, .share = 0.5 / 1.04}}), 2.0, "old", "new");
  CHECK(strict.at("cases").items().at(0).at("status").as_string() == "SLOW");
  CHECK_THAT(change_rule(strict), Contains("2 %"));
}

TEST_CASE("compare: what cannot be compared says why", "[unit]") {
  Json before = result_of({{}, {.variant = "gone"}, {.variant = "wrong"}});
  Json now = result_of({{}, {.variant = "fresh"}, {.variant = "wrong", .status = "WRONG"}});
  Json unmeasured = now.at("cases").items().at(2);
  unmeasured["ms_median"] = Json();
  now["cases"] = Json::Array{now.at("cases").items().at(0), now.at("cases").items().at(1), unmeasured};
  const Json changes = compare_results(before, now, kLeastChange, "old", "new");
  const Json::Array& cases = changes.at("cases").items();
  REQUIRE(cases.size() == 4);
  CHECK(cases[0].at("status").as_string() == "SAME");
  CHECK(cases[0].at("why").is_null());
  for (const size_t i : {1, 2, 3}) CHECK(cases[i].at("status").as_string() == "????");
  CHECK(cases[1].at("why").as_string() == "not in the result before");
  CHECK(cases[2].at("why").as_string() == "not timed now: WRONG");
  CHECK(cases[3].at("why").as_string() == "not in the new result");
  CHECK(change_counts(changes) == "0 SLOW, 0 FAST, 1 SAME, 0 AMBG, 3 ????");
  CHECK(change_table(changes).rows.size() == 4);
  const auto refused = [&](const Json& other, const std::string& what) {
    require_error(ErrorKind::usage, what, "compare",
                  [&] { (void)compare_results(result_of({{}}), other, kLeastChange, "old", "new"); });
  };
  const auto with = [](const char* key, const Json& value) {
    Json json = result_of({{}});
    json[key] = value;
    return json;
  };
  refused(with("device", "NVIDIA H100"), "measured on cpu, now on NVIDIA H100");
  refused(with("processor", "Another"), "now on Another");
  refused(with("threads", int64_t(7)), "measured by 1 threads, now by 7");
  refused(with("hot", true), "caches were cold in one, warm in the other");
  refused(with("cases", Json::array()), "not in the new result");
  Json without_product = result_of({{}});
  without_product["ceilings"]["product_tflop_s"] = Json();
  refused(without_product, "shares are of the fp32 product in one only");
}

TEST_CASE("compare: a planted slowdown of 20 percent ends with 7 and equal results with 0", "[cli]") {
  const TemporaryDirectory folder;
  const std::string before = written(folder, "old.json", result_of({{}, {.variant = "oracle"}})),
                    slow = written(folder, "slow.json",
                                   result_of({{}, {.ms = 12.0, .share = 0.5 / 1.2, .variant = "oracle"}})),
                    fast = written(folder, "fast.json",
                                   result_of({{}, {.ms = 8.0, .share = 0.5 / 0.8, .variant = "oracle"}}));
  const CommandResult slower = run_vqlab("compare " + before + " " + slow);
  require_failure(slower, 7, "lookup oracle at 100,16,4 is slower than before: 12 ms instead of 10",
                  "--variant");
  CHECK_THAT(slower.out, Contains("+20.0") && Contains("1 SLOW, 0 FAST, 1 SAME, 0 AMBG, 0 ????"));
  CHECK(run_vqlab("compare " + before + " " + slow + " --threshold 25").exit_code == 0);
  for (const std::string& other : {before, fast}) {
    const CommandResult result = run_vqlab("compare " + before + " " + other);
    CHECK(result.exit_code == 0);
    CHECK(result.err.empty());
  }
  const CommandResult result = run_vqlab("compare " + before + " " + slow + " --json");
  CHECK(result.exit_code == 7);
  const Json json = parse_json(result.out, "stdout");
  CHECK(json.at("counts").at("SLOW").as_integer() == 1);
  CHECK(json.at("cases").items().at(1).at("ratio").as_number() == 1.2);
}

TEST_CASE("compare: results from before quartiles and processors were kept can be read", "[unit]") {
  Json before = Json::object(), row = Json::object();
  const Json kept = result_of({{}});
  for (const char* key : {"device", "threads", "ceilings"}) before[key] = kept.at(key);
  for (const auto& [key, value] : kept.at("cases").items().at(0).members())
    if (key != "ms_q1" && key != "ms_q3") row[key] = value;
  before["cases"].push_back(row);
  const TemporaryDirectory folder;
  const Json read = read_comparison(written(folder, "old.json", before));
  const auto status = [&](const Measured& m) {
    return compare_results(read, result_of({m}), kLeastChange, "old", "new")
        .at("cases")
        .items()
        .at(0)
        .at("status")
        .as_string();
  };
  CHECK(status({}) == "SAME");
  CHECK(status({.ms = 12.0, .share = 0.5 / 1.2}) == "SLOW");
}

TEST_CASE("compare: files that are no results are refused", "[bad-input]") {
  const TemporaryDirectory folder;
  const std::string good = written(folder, "good.json", result_of({{}}));
  const auto refused = [&](const std::string& text, const std::string& what) {
    write_file(folder / "bad.json", text);
    require_failure(run_vqlab("compare " + good + " " + (folder / "bad.json")), 3, what, "compare --json");
  };
  refused("", "no result of `vqlab compare --json`");
  refused("[1, 2]", "no result of `vqlab compare --json`");
  refused("{\"cases\": 7}", "no result of `vqlab compare --json`");
  refused(R"({"error": {"what": "no memory", "where": "x", "hint": "y", "code": 5}})",
          "it holds an error: no memory");
  refused(R"({"run": "runs/a", "steps": 5})", "device");
  refused(result_of({{}, {}}).dump(), "comes twice");
  for (const char* key : {"ms_median", "share_of_ceiling"}) {
    Json zero = result_of({}), row = case_of({});
    row[key] = 0.0;
    zero["cases"].push_back(row);
    refused(zero.dump(), "is not positive");
  }
  require_failure(run_vqlab("compare " + good + " " + (folder / "none.json")), 3, "none.json", "");
  require_failure(run_vqlab("compare " + good), 2, "is one result, and two are compared", "--against");
  require_failure(run_vqlab("compare " + good + " " + good + " --shape 1,1,1"), 2, "compared as they are",
                  "leave out");
  Json gpu = result_of({{}});
  gpu["device"] = "NVIDIA H200";
  require_failure(run_vqlab("compare " + good + " " + written(folder, "gpu.json", gpu)), 2,
                  "measured on cpu, now on NVIDIA H200", "on one machine");
}

TEST_CASE("compare: --against measures the cases of a result again", "[cli]") {
  const TemporaryDirectory folder;
  const std::string common = " --device cpu --threads 1 --seconds 1 --threshold 1000 --json",
                    before = folder / "old.json";
  const Json first = json_of(run_vqlab("compare --variant fused --shape 300,32,4" + common));
  write_file(before, first.dump());
  const Json again = json_of(run_vqlab("compare --variant fused --against " + before + common));
  REQUIRE(again.at("cases").items().size() == 1);
  CHECK(shape_text(again.at("cases").items()[0]) == "300,32,4");
  CHECK(again.at("changes").at("counts").at("????").as_integer() == 0);
  // As if it had been a hundred times faster, beside the same ceilings.
  Json planted = first, row = first.at("cases").items().at(0);
  for (const char* key : {"ms_median", "ms_iqr", "ms_q1", "ms_q3", "ms_min"})
    row[key] = row.at(key).as_number() / 100.0;
  row["share_of_ceiling"] = row.at("share_of_ceiling").as_number() * 100.0;
  planted["cases"] = Json::Array{row};
  const CommandResult slower =
      run_vqlab("compare --variant fused --against " + written(folder, "planted.json", planted) + common);
  require_failure(slower, 7, "lookup fused at 300,32,4 is slower than before", "--shape 300,32,4");
}

TEST_CASE("compare: --against refuses what it could not compare before it measures", "[bad-input]") {
  const TemporaryDirectory folder;
  Json gpu = result_of({{}});
  gpu["device"] = "NVIDIA H200";
  const std::string path = written(folder, "gpu.json", gpu);
  require_failure(run_vqlab("compare --device cpu --seconds 0 --against " + path), 2,
                  "measured on NVIDIA H200", "--threads");
  require_failure(run_vqlab("compare --device cpu --verify --against " + path), 2, "times nothing",
                  "--against");
  require_failure(run_vqlab("compare --device cpu --threads 1 --shape 1,1,1 --against " +
                            written(folder, "other.json", result_of({{}}))),
                  2, "has none of the cases", "leave out --op");
  require_failure(run_vqlab("compare --against " + (folder / "none")), 3, "none", "");
}

// ---- files ----

TEST_CASE("compare: the cases as CSV", "[unit]") {
  Json result = result_of({{}, {.variant = "oracle"}});
  Json odd = case_of({.variant = "odd"});
  odd["status"] = "a \"quoted\", text";
  odd["ms_median"] = Json();
  result["cases"].push_back(odd);
  const std::string csv = comparison_csv(result);
  CHECK(csv.starts_with("n,k,d,op,device,variant,shape_name,dtype,"));
  CHECK(count_of(csv, "\r\n") == 4);
  CHECK_THAT(csv, Contains("\r\n100,16,4,lookup,cpu,fused,,fp32,exact,true,0,100,10.0,9.9,10.1,9.8,20,"));
  CHECK_THAT(
      csv,
      Contains(",\"a \"\"quoted\"\", text\",\"vqlab compare --op lookup --variant odd --shape 100,16,4"));
  const std::string head = csv.substr(0, csv.find("\r\n")), second = csv.substr(head.size() + 2);
  const std::string plain =
      second.substr(0, second.find(",\"vqlab"));  // the shape in the last field has commas
  CHECK(std::count(plain.begin(), plain.end(), ',') + 1 == std::count(head.begin(), head.end(), ','));
}

TEST_CASE("compare: the page has tables and charts and needs nothing else", "[unit]") {
  Json result = result_of({{}, {.ms = 1000.0, .share = 0.005, .variant = "oracle"}, {.variant = "<slow>"}});
  Json slow = case_of({.variant = "late", .status = "TOO SLOW"});
  for (const char* key : {"ms_median", "ms_q1", "ms_q3", "gb_s", "tflop_s", "share_of_ceiling"})
    slow[key] = Json();
  result["cases"].push_back(slow);
  const std::string html = to_html(comparison_document(result));
  require_well_formed(html);
  CHECK(count_of(html, "<svg") == 2);  // bars of one shape, and the roofline
  CHECK_THAT(html, Contains("@media print") && Contains("TOO SLOW") && Contains("a logarithmic axis") &&
                       Contains("&lt;slow&gt;") && Contains("copy, product") && Contains("--variant fused"));
  CHECK(html.find("nan") == std::string::npos);
  const Runtime cpu("cpu", 1);
  Json verified = comparison_head(cpu, nullptr, {.timed = false}, "vqlab compare --verify");
  verified["cases"].push_back(slow);
  const std::string without = to_html(comparison_document(verified));
  require_well_formed(without);
  CHECK(count_of(without, "<svg") == 0);
  result["changes"] =
      compare_results(result_of({{.ms = 8.0, .share = 0.625}}), result, kLeastChange, "a.json", "b");
  const std::string changed = to_html(comparison_document(result));
  require_well_formed(changed);
  CHECK_THAT(changed, Contains("SLOW") && Contains("not in the result before") && Contains("a.json"));
}

TEST_CASE("compare: the roofline names a shape once and bends at the ridge", "[unit]") {
  const Picture picture = roofline_picture(result_of({{}, {.share = 0.2, .variant = "oracle"}}));
  CHECK(count_of(picture.svg, ">100,16,4</text>") == 1);
  CHECK(count_of(picture.svg, "stroke-dasharray=\"6 3\"") == 2);  // the roof and its mark in the legend
  const size_t end = picture.svg.find("fill=\"none\" stroke=\"#444\" stroke-width");
  REQUIRE(end != std::string::npos);
  const std::string roof = picture.svg.substr(picture.svg.rfind("<path", end), 60);
  CHECK(count_of(roof, "L") == 2);
  Json no_product = result_of({}), row = case_of({});
  row["product_tflop_s"] = no_product["ceilings"]["product_tflop_s"] = Json();
  no_product["cases"].push_back(row);
  CHECK(count_of(roofline_picture(no_product).svg, "stroke-dasharray=\"6 3\"") == 2);
  CHECK(roofline_picture(result_of({})).svg.empty());
}

TEST_CASE("compare: writes a table and a page where it is told to", "[cli]") {
  const TemporaryDirectory folder;
  const std::string csv = folder / "a.csv", html = folder / "a.html";
  const CommandResult result = run_vqlab("compare --device cpu --op all --shape 300,16,4 --seconds 0 --csv " +
                                         csv + " --html " + html + " --json");
  const Json json = json_of(result);
  const size_t cases = json.at("cases").items().size();
  CHECK(ops_of(json).size() == variant_ops().size());
  CHECK(size_t(count_of(read_file(csv, 1 << 20), "\r\n")) == cases + 1);
  const std::string page = read_file(html, 1 << 20);
  require_well_formed(page);
  CHECK(size_t(count_of(page, "<svg")) == variant_ops().size() + 1);
  for (const char* option : {"--csv", "--html"}) {
    require_failure(run_vqlab(fmt::format("compare {} {}", option, folder / "no/such/file")), 2,
                    "cannot be written", "a folder that exists");
    require_failure(run_vqlab(fmt::format("compare {} {}", option, folder.path())), 2, "cannot be written",
                    "name a file");
  }
}

// ---- shapes and operands ----

TEST_CASE("compare: sets of shapes by name", "[unit]") {
  const std::vector<NamedShape> all = shape_set("S1,S2,S3,S4,S5");
  REQUIRE(all.size() == 5);
  CHECK(all[0].shape.text() == "262144,512,64");
  CHECK(all[1].shape.text() == "1048576,1024,64");
  CHECK(all[2].shape.text() == "1048576,8192,256");
  CHECK(all[3].shape.text() == "262144,16384,8");
  CHECK(all[4].shape.text() == "65536,262144,256");
  CHECK(all[4].name == "S5");
}

TEST_CASE("compare: the shapes of a configuration are those of its batches", "[cli]") {
  const Desk desk(7, 9);  // latents 2 x 3 of 4 x 4 pixels each
  const std::vector<NamedShape> shapes = shape_set(desk.config());
  REQUIRE(shapes.size() == 2);
  CHECK(shapes[0].shape.text() == "48,16,4");
  CHECK(shapes[0].name == "tiny training");
  CHECK(shapes[1].shape.text() == "384,16,4");
  CHECK(shapes[1].name == "tiny inference");
  const Json json = json_of(run_vqlab("compare --device cpu --verify --json --shapes " + desk.config()));
  REQUIRE(json.at("cases").items().size() == 2 * lookup_variants(Device::cpu).size());
  CHECK(json.at("cases").items()[0].at("shape_name").as_string() == "tiny training");
}

TEST_CASE("compare: unknown sets and operands are refused", "[bad-input]") {
  const TemporaryDirectory folder;
  require_failure(run_vqlab("compare --shapes S6"), 2, "unknown shape set 'S6'", "did you mean 'S1'?");
  require_failure(run_vqlab("compare --shapes S1,"), 2, "unknown shape set ''", "S1 to S5");
  require_failure(run_vqlab("compare --shapes all"), 2, "unknown shape set 'all'", "CONFIG.toml");
  require_failure(run_vqlab("compare --shapes " + (folder / "none.toml")), 2, "none.toml", "");
  std::string plain = tiny_config(folder.path());
  plain.replace(plain.find("codebook_size"), 0, "kind = \"none\"\n");
  write_file(folder / "plain.toml", plain);
  require_failure(run_vqlab("compare --shapes " + (folder / "plain.toml")), 2, "has no codebook",
                  "quantizer.kind");
  require_failure(run_vqlab("compare --dtype bf16"), 2, "no variants for operands in bf16", "fp32");
  require_failure(run_vqlab("compare --op lookup,sums"), 2, "unknown op 'sums'", "cluster_sums");
  require_failure(run_vqlab("compare --op all --variant fused --device cpu"), 2, "variants are of one op",
                  "--op");
}

}  // namespace vqlab::testing
