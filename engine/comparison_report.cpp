#include "comparison_report.hpp"

#include <fmt/format.h>

#include <ctime>

#include "changes.hpp"
#include "comparison_charts.hpp"
#include "environment.hpp"
#include "kernels/core/parallel.hpp"
#include "trust.hpp"

namespace vqlab {
namespace {

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc);
  return text;
}

std::string repro(const VariantOp& op, const VariantResult& r, const ComparisonOptions& options) {
  const bool cpu = r.variant.device == Device::cpu;
  return fmt::format("vqlab compare --op {} --variant {} --shape {} --device {}{}{}{}", op.name,
                     r.variant.name, r.shape.text(), device_text(r.variant.device),
                     cpu ? fmt::format(" --threads {}", worker_count()) : "", options.hot ? " --hot" : "",
                     options.timed ? "" : " --verify");
}

// Each kernel, and the most that one of them asks for; null where the device does not tell.
void add_resources(Json& json, const std::vector<LaunchedKernel>& kernels) {
  int registers = 0;
  int64_t shared = 0;
  json["kernels"] = Json::array();
  for (const LaunchedKernel& kernel : kernels) {
    const bool known = kernel.registers > 0;
    Json entry = Json::object();
    entry["name"] = kernel.name;
    entry["registers"] = known ? Json(kernel.registers) : Json();
    entry["shared_bytes"] = known ? Json(kernel.shared_bytes) : Json();
    json["kernels"].push_back(entry);
    registers = std::max(registers, kernel.registers);
    shared = std::max(shared, kernel.shared_bytes);
  }
  json["registers"] = registers > 0 ? Json(registers) : Json();
  json["shared_bytes"] = registers > 0 ? Json(shared) : Json();
}

// A number, text, truth value or nothing, as a field of a CSV file.
std::string csv_field(const Json& value) {
  if (value.is_null()) return "";
  const std::string text = value.is_string() ? value.as_string() : value.dump();
  if (text.find_first_of(",\"\n\r") == text.npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

std::string number(const Json& value, const char* format) {
  return value.is_null() ? "-" : fmt::format(fmt::runtime(format), value.as_number());
}

// Of one op, one row for each case.
Table case_table(const Json& result, const std::string& op, bool on_gpu) {
  Table table{.caption = "",
              .head = {"variant", "N,K,D", "rows right", "median ms", "samples", "GB/s", "TFLOP/s",
                       "% of the ceiling"},
              .rows = {},
              .text_columns = 2};
  for (const char* head : {"registers", "shared KiB"})
    if (on_gpu) table.head.push_back(head);
  for (const char* head : {"answers", "two runs", "status"}) table.head.push_back(head);
  for (const Json& row : result.at("cases").items()) {
    if (row.at("op").as_string() != op) continue;
    const int64_t checked = row.at("rows_checked").as_integer();
    const bool timed = !row.at("ms_median").is_null();
    std::vector<Cell> cells = {
        {row.at("variant").as_string(), ""},
        {shape_text(row), row.at("shape_name").is_null() ? "" : row.at("shape_name").as_string()},
        {checked == 0 ? "-" : fmt::format("{} of {}", checked - row.at("wrong").as_integer(), checked), ""},
        {number(row.at("ms_median"), "{:.4g}"),
         timed ? fmt::format("{:.4g} - {:.4g}", row.at("ms_q1").as_number(), row.at("ms_q3").as_number())
               : ""},
        {timed ? fmt::format("{}", row.at("samples").as_integer()) : "-", ""},
        {number(row.at("gb_s"), "{:.4g}"), ""},
        {number(row.at("tflop_s"), "{:.3g}"), ""},
        {timed ? fmt::format("{:.1f}", 100.0 * row.at("share_of_ceiling").as_number()) : "-", ""}};
    if (on_gpu) {
      cells.push_back({number(row.at("registers"), "{:.0f}"), ""});
      const Json& shared = row.at("shared_bytes");
      cells.push_back({shared.is_null() ? "-" : fmt::format("{:.1f}", shared.as_number() / 1024.0), ""});
    }
    const Json& equal = row.at("deterministic");
    cells.push_back({row.at("exactness").as_string(), ""});
    cells.push_back({equal.is_null() ? "-" : equal.as_bool() ? "equal" : "differ", ""});
    cells.push_back({row.at("status").as_string(), ""});
    table.rows.push_back(cells);
  }
  return table;
}

std::string where_measured(const Json& result) {
  const bool cpu = result.at("device").as_string() == "cpu";
  std::string text = cpu ? fmt::format("{}, {} threads", result.at("processor").as_string(),
                                       result.at("threads").as_integer())
                         : result.at("device").as_string();
  text += fmt::format(", {}. ", result.at("date").as_string());
  const Json& ceilings = result.at("ceilings");
  if (ceilings.at("copy_gb_s").is_null()) return text + "Verified only: nothing was timed.";
  text += fmt::format("Ceilings of the same run: copy {:.1f} GB/s, ", ceilings.at("copy_gb_s").as_number());
  const Json& product = ceilings.at("product_tflop_s");
  text += product.is_null() ? "fp32 product not measured. "
                            : fmt::format("fp32 product {:.4g} TFLOP/s. ", product.as_number());
  return text + (result.at("hot").as_bool() ? "Caches are left warm between samples."
                                            : "Caches are swept before every sample.");
}

Table repeat_table(const Json& result) {
  Table table{.caption = "", .head = {"case", "command"}, .rows = {}, .text_columns = 2};
  for (const Json& row : result.at("cases").items())
    table.rows.push_back({{fmt::format("{} {}", row.at("variant").as_string(), shape_text(row)), ""},
                          {fmt::format("`{}`", row.at("repro").as_string()), ""}});
  return table;
}

void add_method(Document& document, const Json& result) {
  document.blocks.push_back(Heading{"How it was measured"});
  document.blocks.push_back(
      Paragraph{"Each variant is verified first, against the definition of its op, on the data that it is "
                "timed on and on "
                "data made to be hard (`rows right`); one with a wrong row is not timed. The variants of a "
                "shape and both "
                "ceilings take turns, so that drift of the machine hits all alike. Times are medians, with "
                "quartiles below "
                "or as whiskers."});
  document.blocks.push_back(Paragraph{
      "GB/s counts each operand read and each result written once, TFLOP/s the operations of the op alone: "
      "2 N K D of a lookup. The share is of the ceiling that binds, as measured among the samples of the "
      "same "
      "shape: of the product or of the copy, whichever is larger."});
  document.blocks.push_back(Heading{"To repeat"});
  document.blocks.push_back(repeat_table(result));
  document.blocks.push_back(
      Paragraph{fmt::format("vqlab {}, build {}: `{}`", result.at("vqlab").as_string(),
                            result.at("build").as_string(), result.at("command").as_string())});
}

}  // namespace

std::string exactness(const VariantOp& op, const VariantInfo& variant) {
  if (variant.exact) return "exact";
  if (!op.bounds_rounding) return "approximate";
  return variant.reproducible ? "rounded" : "not reproducible";
}

Json comparison_head(const Runtime& runtime, const Ceilings* ceilings, const ComparisonOptions& options,
                     const std::string& command_line) {
  Json json = Json::object();
  json["device"] = runtime.device_name();
  json["note"] = runtime.note();
  json["threads"] = int64_t(worker_count());
  json["processor"] = processor_name();
  json["vqlab"] = version();
  json["build"] = build_id();
  json["date"] = now_text();
  json["command"] = command_line;
  json["hot"] = options.hot;
  const bool product = ceilings != nullptr && ceilings->product_tflop_s;
  json["ceilings"]["copy_gb_s"] = ceilings != nullptr ? Json(ceilings->copy_gb_s) : Json();
  json["ceilings"]["product_tflop_s"] = product ? Json(*ceilings->product_tflop_s) : Json();
  json["cases"] = Json::array();
  return json;
}

Json to_json(const VariantOp& op, const VariantResult& r, const std::string& shape_name,
             const ComparisonOptions& options) {
  Json json = Json::object();
  json["op"] = op.name;
  json["device"] = device_text(r.variant.device);
  json["variant"] = r.variant.name;
  Json sizes = Json::array();
  for (const int64_t size : {r.shape.N, r.shape.K, r.shape.D}) sizes.push_back(size);
  json["shape"] = sizes;
  json["shape_name"] = shape_name.empty() ? Json() : Json(shape_name);
  json["dtype"] = "fp32";
  json["exact"] = r.variant.exact;
  json["exactness"] = exactness(op, r.variant);
  json["verified"] = r.rows_checked > 0 && r.wrong == 0;
  json["wrong"] = r.wrong;
  json["rows_checked"] = r.rows_checked;
  const auto timed = [&](double value) { return r.timing ? Json(value) : Json(); };
  const Timing timing = r.timing.value_or(Timing{});
  json["ms_median"] = timed(timing.median_ms);
  json["ms_iqr"] = timed(timing.iqr_ms);
  json["ms_q1"] = timed(timing.q1_ms);
  json["ms_q3"] = timed(timing.q3_ms);
  json["ms_min"] = timed(timing.min_ms);
  json["samples"] = timing.samples;
  json["settled"] = timing.settled;
  json["gb_s"] = timed(r.gb_s);
  json["tflop_s"] = timed(r.tflop_s);
  json["flop_per_byte"] = op.flop(r.shape) / op.bytes(r.shape);
  json["copy_gb_s"] = timed(r.copy_gb_s);
  json["product_tflop_s"] = r.product_tflop_s > 0.0 ? Json(r.product_tflop_s) : Json();
  json["share_of_ceiling"] = timed(r.share);
  add_resources(json, r.kernels);
  const bool repeated = r.status == "ok" || r.status == "MISTRUSTED";
  json["deterministic"] = repeated ? Json(r.deterministic) : Json();
  json["status"] = r.status;
  json["repro"] = repro(op, r, options);
  return json;
}

std::string shape_text(const Json& row) {
  std::string text;
  for (const Json& size : row.at("shape").items())
    text += fmt::format("{}{}", text.empty() ? "" : ",", size.as_integer());
  return text;
}

std::string comparison_csv(const Json& result) {
  static constexpr const char* kColumns[] = {
      "op",        "device",       "variant",       "shape_name", "dtype",   "exactness",
      "verified",  "wrong",        "rows_checked",  "ms_median",  "ms_q1",   "ms_q3",
      "ms_min",    "samples",      "settled",       "gb_s",       "tflop_s", "share_of_ceiling",
      "registers", "shared_bytes", "deterministic", "status",     "repro"};
  std::string text = "n,k,d";
  for (const char* column : kColumns) text += fmt::format(",{}", column);
  text += "\r\n";
  for (const Json& row : result.at("cases").items()) {
    text += shape_text(row);
    for (const char* column : kColumns) text += fmt::format(",{}", csv_field(row.at(column)));
    text += "\r\n";
  }
  return text;
}

Document comparison_document(const Json& result) {
  Document document{.title = "Kernel variants compared", .blocks = {Paragraph{where_measured(result)}}};
  if (const Json* changes = result.find("changes")) {
    document.blocks.push_back(Heading{"Against the result before"});
    document.blocks.push_back(change_table(*changes));
    document.blocks.push_back(Paragraph{change_rule(*changes)});
  }
  const bool on_gpu = result.at("device").as_string() != "cpu";
  for (const std::string& op : ops_of(result)) {
    document.blocks.push_back(Heading{op});
    document.blocks.push_back(case_table(result, op, on_gpu));
    for (Picture& picture : time_pictures(result, op)) document.blocks.push_back(std::move(picture));
  }
  if (Picture picture = roofline_picture(result); !picture.svg.empty()) {
    document.blocks.push_back(Heading{"Roofline"});
    document.blocks.push_back(std::move(picture));
  }
  add_method(document, result);
  return document;
}

}  // namespace vqlab
