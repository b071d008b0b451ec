#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <functional>
#include <limits>
#include <optional>

#include "command.hpp"
#include "engine/ceilings.hpp"
#include "engine/lookup_case.hpp"
#include "engine/measure.hpp"
#include "engine/runtime.hpp"
#include "kernels/core/names.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kTiedRows = 256;     // of the problem with ties that every variant must solve first
constexpr double kCheckedTerms = 1e9;  // (row, code, element) triples that verification may take: seconds
constexpr double kMistrustedShare =
    0.9;  // one code takes more of the rows than this: a constant would nearly pass
constexpr double kPatience =
    4.0;  // a variant whose one run takes longer than this times --seconds is not timed

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end; (end = text.find(separator)) != text.npos; text.remove_prefix(end + 1))
    parts.push_back(text.substr(0, end));
  parts.push_back(text);
  return parts;
}

LookupShape parse_shape(const std::string& text) {
  const std::vector<std::string_view> parts = split(text, ',');
  std::vector<int64_t> sizes;
  for (const std::string_view part : parts) {
    int64_t size = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), size);
    if (error == std::errc() && end == part.data() + part.size() && size >= 1) sizes.push_back(size);
  }
  if (parts.size() != 3 || sizes.size() != 3)
    throw Error(ErrorKind::usage, fmt::format("'{}' is not a shape N,K,D", text),
                "three whole numbers from 1, for example --shape 65536,512,64", "--shape");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const LookupShape shape{sizes[0], sizes[1], sizes[2]};
  if (shape.N > kMost || shape.K > kMost || shape.D > kMost ||
      2.0 * shape.bytes() > double(available_bytes()))
    throw Error(ErrorKind::usage, fmt::format("shape {} does not fit into memory", text),
                "use fewer latents, codes or elements", "--shape");
  return shape;
}

// One row of the table.
struct Result {
  const LookupVariant* variant;
  LookupShape shape;
  std::string status = "ok";
  int64_t wrong = 0, rows_checked = 0;
  bool deterministic = true;
  std::optional<Timing> timing = {};
  double share = 0.0;  // of the ceiling that binds: product or copy

  double gb_s() const { return shape.bytes() / timing->median_ms * 1e-6; }
  double tflop_s() const { return shape.flop() / timing->median_ms * 1e-9; }
  std::string shape_text() const { return fmt::format("{},{},{}", shape.N, shape.K, shape.D); }
  std::string repro(bool hot) const {
    return fmt::format("vqlab compare --op lookup --variant {} --shape {} --device cpu --threads {}{}",
                       variant->name, shape_text(), worker_count(), hot ? " --hot" : "");
  }
  Json to_json(bool hot) const;
};

Json Result::to_json(bool hot) const {
  Json json = Json::object();
  json["op"] = "lookup";
  json["variant"] = variant->name;
  Json sizes = Json::array();
  for (const int64_t size : {shape.N, shape.K, shape.D}) sizes.push_back(size);
  json["shape"] = sizes;
  json["dtype"] = "fp32";
  json["exact"] = variant->exact;
  json["verified"] = rows_checked > 0 && wrong == 0;
  json["wrong"] = wrong;
  json["rows_checked"] = rows_checked;
  json["ms_median"] = timing ? Json(timing->median_ms) : Json();
  json["ms_iqr"] = timing ? Json(timing->iqr_ms) : Json();
  json["ms_min"] = timing ? Json(timing->min_ms) : Json();
  json["samples"] = timing ? timing->samples : int64_t(0);
  json["settled"] = timing && timing->settled;
  json["gb_s"] = timing ? Json(gb_s()) : Json();
  json["tflop_s"] = timing ? Json(tflop_s()) : Json();
  json["share_of_ceiling"] = timing ? Json(share) : Json();
  json["registers"] = Json();  // of a GPU kernel
  json["shared_bytes"] = Json();
  json["deterministic"] = timing ? Json(deterministic) : Json();
  json["status"] = status;
  json["repro"] = repro(hot);
  return json;
}

class CompareCommand : public Command {
 public:
  void declare(Options& o) override {
    o.option("op", op_, "which op: lookup");
    o.list("variant", variant_texts_, "variants V,... to compare; all if not given");
    o.list("shape", shape_texts_, "N,K,D: latents, codes, elements of a code; repeatable");
    o.option("seconds", seconds_, 0, 600,
             "time-out of the timing of one variant at one shape; 0: one sample");
    o.flag("hot", hot_, "leave the caches warm between samples");
    o.flag("list", list_, "show the variants and what they are, and stop");
  }

  CommandResult run(const CommonOptions& common) override;

 private:
  void parse();
  Json list_variants(bool json) const;
  std::vector<Result> compare_shape(const LookupShape& shape, const Ceilings& ceilings) const;
  Result verify(const LookupVariant& variant, LookupCase& tied, LookupCase& plain) const;
  void measure_all(std::vector<Result>& results, LookupCase& plain, const Ceilings& ceilings) const;
  void print(const Result& result) const;

  std::string op_ = "lookup";
  std::vector<std::string> variant_texts_, shape_texts_;
  std::vector<const LookupVariant*> variants_;
  std::vector<LookupShape> shapes_;
  int64_t seconds_ = 5;
  bool hot_ = false, list_ = false;
};

void CompareCommand::parse() {
  static constexpr std::string_view kOps[] = {"lookup"};
  if (op_ != kOps[0])
    throw Error(ErrorKind::usage, fmt::format("unknown op '{}'", op_), "the ops with variants are: lookup",
                "--op");
  for (const std::string& text : variant_texts_)
    for (const std::string_view name : split(text, ',')) variants_.push_back(&find_lookup_variant(name));
  if (variants_.empty()) variants_.assign(lookup_variants().begin(), lookup_variants().end());
  for (const std::string& text : shape_texts_) shapes_.push_back(parse_shape(text));
  if (shapes_.empty()) shapes_ = {{65536, 512, 64}, {16384, 8192, 64}, {65536, 1024, 8}};
}

Json CompareCommand::list_variants(bool json) const {
  Json rows = Json::array();
  for (const LookupVariant* variant : variants_) {
    if (!json)
      fmt::print("lookup  {:10} {:12} {}\n", variant->name, variant->exact ? "exact" : "approximate",
                 variant->idea);
    Json row = Json::object();
    row["op"] = "lookup";
    row["variant"] = variant->name;
    row["exact"] = variant->exact;
    row["idea"] = variant->idea;
    rows.push_back(row);
  }
  Json result = Json::object();
  result["variants"] = rows;
  return result;
}

Result CompareCommand::verify(const LookupVariant& variant, LookupCase& tied, LookupCase& plain) const {
  Result result{.variant = &variant, .shape = plain.shape()};
  if (!variant.supports(result.shape.N, result.shape.K, result.shape.D)) {
    result.status = "UNSUPPORTED";
    return result;
  }
  const std::function<void()> probe = [&] { tied.run(variant); };
  const double probe_ms = measure({&probe, 1}, {.min_samples = 1, .seconds = 0.0, .cold = false})[0].min_ms;
  result.wrong = tied.wrong();
  result.rows_checked = tied.rows_checked();
  const double expected_seconds = 1e-3 * probe_ms * double(plain.shape().N) / double(tied.shape().N);
  if (expected_seconds <= kPatience * std::max(1.0, double(seconds_))) {
    plain.run(variant);
    result.wrong += plain.wrong();
    result.rows_checked += plain.rows_checked();
    if (plain.shape().K > 1 && plain.largest_share() > kMistrustedShare) result.status = "MISTRUSTED";
  } else {
    result.status = "TOO SLOW";
  }
  if (result.wrong > 0 && variant.exact) result.status = "WRONG";
  return result;
}

// The product runs between the variants, so that a busy machine slows both sides of the share.
void CompareCommand::measure_all(std::vector<Result>& results, LookupCase& plain,
                                 const Ceilings& ceilings) const {
  ProductCeiling product;
  std::vector<std::function<void()>> calls = {[&] { product.run(); }};
  std::vector<Result*> timed;
  for (Result& result : results) {
    if (result.status != "ok" && result.status != "MISTRUSTED") continue;
    timed.push_back(&result);
    calls.push_back([&plain, variant = result.variant] { plain.run(*variant); });
  }
  const std::vector<Timing> timings = measure(calls, {.seconds = double(seconds_), .cold = !hot_});
  const double product_tflop_s = ProductCeiling::kFlop / timings[0].median_ms * 1e-9;
  for (size_t i = 0; i < timed.size(); ++i) {
    Result& result = *timed[i];
    result.timing = timings[i + 1];
    result.share = std::max(result.tflop_s() / product_tflop_s, result.gb_s() / ceilings.copy_gb_s);
    plain.run(*result.variant);
    const std::vector<int32_t> codes = plain.codes();
    plain.run(*result.variant);
    result.deterministic = plain.codes() == codes;
  }
}

std::vector<Result> CompareCommand::compare_shape(const LookupShape& shape, const Ceilings& ceilings) const {
  LookupCase tied({std::min(shape.N, kTiedRows), shape.K, shape.D}, LookupCase::Data::tied, kTiedRows);
  const double rows = kCheckedTerms / (double(shape.K) * double(shape.D));
  LookupCase plain(shape, LookupCase::Data::gaussian, std::max(int64_t(16), int64_t(rows)));
  std::vector<Result> results;
  for (const LookupVariant* variant : variants_) results.push_back(verify(*variant, tied, plain));
  measure_all(results, plain, ceilings);
  return results;
}

void CompareCommand::print(const Result& r) const {
  fmt::print("{:9} {:18} {:6} of {:<6} ", r.variant->name, r.shape_text(), r.rows_checked - r.wrong,
             r.rows_checked);
  if (r.timing)
    fmt::print("{:10.3f} {:8.3f} {:5} {:7.2f} {:8.4f} {:6.1f}%  ", r.timing->median_ms, r.timing->iqr_ms,
               r.timing->samples, r.gb_s(), r.tflop_s(), 100.0 * r.share);
  else
    fmt::print("{:>10} {:>8} {:>5} {:>7} {:>8} {:>7}  ", "-", "-", "-", "-", "-", "-");
  fmt::print("{}\n          {}\n", r.status, r.repro(hot_));
}

CommandResult CompareCommand::run(const CommonOptions& common) {
  parse();
  if (list_) return {.json = list_variants(common.json)};
  // The variants of this op run on the CPU; a GPU is used only when asked for.
  const Runtime runtime(common.device == "auto" ? "cpu" : common.device, int(common.threads));
  if (runtime.device() != Device::cpu)
    throw Error(ErrorKind::device, "lookup has no CUDA variants", "use --device cpu", "--device");
  const Ceilings ceilings = measure_ceilings(std::min(1.0, double(seconds_)));
  if (!common.json) {
    fmt::print("{}, {} threads: copy {:.1f} GB/s, fp32 product {:.4f} TFLOP/s\n\n", runtime.device_name(),
               worker_count(), ceilings.copy_gb_s, ceilings.product_tflop_s);
    fmt::print("{:9} {:18} {:16} {:>10} {:>8} {:>5} {:>7} {:>8} {:>7}  {}\n", "variant", "N,K,D",
               "rows right", "median ms", "iqr ms", "runs", "GB/s", "TFLOP/s", "ceiling", "status");
  }
  CommandResult command;
  command.json["device"] = runtime.device_name();
  command.json["threads"] = int64_t(worker_count());
  command.json["ceilings"]["copy_gb_s"] = ceilings.copy_gb_s;
  command.json["ceilings"]["product_tflop_s"] = ceilings.product_tflop_s;
  Json cases = Json::array();
  for (const LookupShape& shape : shapes_)
    for (const Result& result : compare_shape(shape, ceilings)) {
      if (!common.json) print(result);
      if (result.status == "WRONG") {
        command.exit_code = int(ErrorKind::verification);
        fmt::print(stderr, "error: lookup variant '{}' is wrong on {} of {} rows (--shape {})\n",
                   result.variant->name, result.wrong, result.rows_checked, result.shape_text());
        fmt::print(stderr, "hint: use another variant; `{}` repeats this\n", result.repro(hot_));
      }
      cases.push_back(result.to_json(hot_));
    }
  command.json["cases"] = cases;
  return command;
}

}  // namespace

extern const CommandEntry command_compare;
const CommandEntry command_compare{
    "compare",
    "verifies the variants of an op against score64, then times them beside what the machine can do",
    []() -> std::unique_ptr<Command> { return std::make_unique<CompareCommand>(); }};

}  // namespace vqlab
