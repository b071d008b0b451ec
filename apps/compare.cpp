#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>

#include "command.hpp"
#include "engine/comparison.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end; (end = text.find(separator)) != text.npos; text.remove_prefix(end + 1))
    parts.push_back(text.substr(0, end));
  parts.push_back(text);
  return parts;
}

VariantShape parse_shape(const std::string& text) {
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
  if (*std::max_element(sizes.begin(), sizes.end()) > kMost)
    throw Error(ErrorKind::usage, fmt::format("shape {} does not fit into memory", text),
                "use fewer latents, codes or elements", "--shape");
  return {sizes[0], sizes[1], sizes[2]};
}

std::string exactness(const VariantOp& op, const VariantInfo& variant) {
  if (variant.exact) return "exact";
  if (!op.bounds_rounding) return "approximate";
  return variant.reproducible ? "rounded" : "not reproducible";
}

class CompareCommand : public Command {
 public:
  void declare(Options& o) override {
    o.option("op", op_name_, "which op: lookup, cluster_sums, skewed_sums or quantize");
    o.list("variant", variant_texts_, "variants V,... to compare; all of the device if not given");
    o.list("shape", shape_texts_, "N,K,D: latents, codes, elements of a code; repeatable");
    o.option("seconds", seconds_, 0, 600,
             "time-out of the timing of one variant at one shape; 0: one sample");
    o.flag("hot", hot_, "leave the caches warm between samples");
    o.flag("verify", verify_, "verify each variant, run it twice more, and time nothing");
    o.flag("list", list_, "show the variants and what they are, and stop");
  }

  CommandResult run(const CommonOptions& common) override;

 private:
  Json list_variants(const CommonOptions& common) const;
  void print_head(const Runtime& runtime, const Ceilings& ceilings) const;
  void print(const VariantResult& result) const;
  std::string repro(const VariantResult& result) const;
  Json to_json(const VariantResult& result) const;

  std::string op_name_ = "lookup";
  std::vector<std::string> variant_texts_, shape_texts_;
  const VariantOp* op_ = nullptr;
  int64_t seconds_ = 5;
  bool hot_ = false, verify_ = false, list_ = false;
};

// Without --device those of every device, also of one that is not there.
Json CompareCommand::list_variants(const CommonOptions& common) const {
  Json rows = Json::array();
  for (const Device device : {Device::cpu, Device::cuda}) {
    if (common.device != "auto" && common.device != device_text(device)) continue;
    for (const VariantInfo& variant : op_->variants(device)) {
      if (!common.json)
        fmt::print("{:12} {:4}  {:13} {:16} {}\n", op_->name, device_text(device), variant.name,
                   exactness(*op_, variant), variant.idea);
      Json row = Json::object();
      row["op"] = op_->name;
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

std::string CompareCommand::repro(const VariantResult& r) const {
  const bool cpu = r.variant.device == Device::cpu;
  return fmt::format("vqlab compare --op {} --variant {} --shape {} --device {}{}{}", op_->name,
                     r.variant.name, r.shape.text(), device_text(r.variant.device),
                     cpu ? fmt::format(" --threads {}", worker_count()) : "", hot_ ? " --hot" : "");
}

Json CompareCommand::to_json(const VariantResult& r) const {
  Json json = Json::object();
  json["op"] = op_->name;
  json["device"] = device_text(r.variant.device);
  json["variant"] = r.variant.name;
  Json sizes = Json::array();
  for (const int64_t size : {r.shape.N, r.shape.K, r.shape.D}) sizes.push_back(size);
  json["shape"] = sizes;
  json["dtype"] = "fp32";
  json["exact"] = r.variant.exact;
  json["verified"] = r.rows_checked > 0 && r.wrong == 0;
  json["wrong"] = r.wrong;
  json["rows_checked"] = r.rows_checked;
  json["ms_median"] = r.timing ? Json(r.timing->median_ms) : Json();
  json["ms_iqr"] = r.timing ? Json(r.timing->iqr_ms) : Json();
  json["ms_min"] = r.timing ? Json(r.timing->min_ms) : Json();
  json["samples"] = r.timing ? r.timing->samples : int64_t(0);
  json["settled"] = r.timing && r.timing->settled;
  json["gb_s"] = r.timing ? Json(r.gb_s) : Json();
  json["tflop_s"] = r.timing ? Json(r.tflop_s) : Json();
  json["share_of_ceiling"] = r.timing ? Json(r.share) : Json();
  json["registers"] = Json();  // of a GPU kernel
  json["shared_bytes"] = Json();
  const bool repeated = r.status == "ok" || r.status == "MISTRUSTED";
  json["deterministic"] = repeated ? Json(r.deterministic) : Json();
  json["status"] = r.status;
  json["repro"] = repro(r);
  return json;
}

void CompareCommand::print_head(const Runtime& runtime, const Ceilings& ceilings) const {
  const std::string product = ceilings.product_tflop_s
                                  ? fmt::format("{:.4f} TFLOP/s", *ceilings.product_tflop_s)
                                  : fmt::format("not measured ({})", ceilings.product_problem);
  fmt::print("{}\n{}: copy {:.1f} GB/s, fp32 product {}\n\n", runtime.note(),
             runtime.device() == Device::cpu ? fmt::format("cpu, {} threads", worker_count())
                                             : runtime.device_name(),
             ceilings.copy_gb_s, product);
  fmt::print("{:13} {:18} {:16} {:>10} {:>8} {:>5} {:>7} {:>8} {:>7}  {}\n", "variant", "N,K,D", "rows right",
             "median ms", "iqr ms", "runs", "GB/s", "TFLOP/s", "ceiling", "status");
}

void CompareCommand::print(const VariantResult& r) const {
  fmt::print("{:13} {:18} {:6} of {:<6} ", r.variant.name, r.shape.text(), r.rows_checked - r.wrong,
             r.rows_checked);
  if (r.timing)
    fmt::print("{:10.3f} {:8.3f} {:5} {:7.2f} {:8.4f} {:6.1f}%  ", r.timing->median_ms, r.timing->iqr_ms,
               r.timing->samples, r.gb_s, r.tflop_s, 100.0 * r.share);
  else
    fmt::print("{:>10} {:>8} {:>5} {:>7} {:>8} {:>7}  ", "-", "-", "-", "-", "-", "-");
  fmt::print("{}{}\n              {}\n", r.status,
             r.variant.exact ? "" : fmt::format(" ({})", exactness(*op_, r.variant)), repro(r));
}

CommandResult CompareCommand::run(const CommonOptions& common) {
  op_ = &find_variant_op(op_name_);
  if (list_) return {.json = list_variants(common)};
  std::vector<VariantShape> shapes;
  for (const std::string& text : shape_texts_) shapes.push_back(parse_shape(text));
  if (shapes.empty()) shapes = {{65536, 512, 64}, {16384, 8192, 64}, {65536, 1024, 8}};
  const Runtime runtime(common.device, int(common.threads));
  std::vector<VariantInfo> variants;
  for (const std::string& text : variant_texts_)
    for (const std::string_view name : split(text, ','))
      variants.push_back(find_variant(*op_, runtime.device(), name));
  if (variants.empty()) variants = op_->variants(runtime.device());
  for (const VariantShape& shape : shapes) require_memory_for(*op_, shape, runtime);

  const Ceilings ceilings = verify_ ? Ceilings() : measure_ceilings(runtime, std::min(1.0, double(seconds_)));
  if (!common.json && !verify_) print_head(runtime, ceilings);
  CommandResult command;
  command.json["device"] = runtime.device_name();
  command.json["note"] = runtime.note();
  command.json["threads"] = int64_t(worker_count());
  command.json["ceilings"]["copy_gb_s"] = verify_ ? Json() : Json(ceilings.copy_gb_s);
  command.json["ceilings"]["product_tflop_s"] =
      ceilings.product_tflop_s ? Json(*ceilings.product_tflop_s) : Json();
  Json cases = Json::array();
  const ComparisonOptions options{.seconds = double(seconds_), .hot = hot_, .timed = !verify_};
  for (const VariantShape& shape : shapes)
    for (const VariantResult& result : compare_variants(*op_, variants, shape, ceilings, options, runtime)) {
      if (!common.json) print(result);
      if (result.status == "WRONG") {
        command.exit_code = int(ErrorKind::verification);
        fmt::print(stderr, "error: {} variant '{}' is wrong on {} of {} rows (--shape {})\n", op_->name,
                   result.variant.name, result.wrong, result.rows_checked, result.shape.text());
        fmt::print(stderr, "hint: use another variant; `{}` repeats this\n", repro(result));
      }
      cases.push_back(to_json(result));
    }
  command.json["cases"] = cases;
  return command;
}

}  // namespace

extern const CommandEntry command_compare;
const CommandEntry command_compare{
    "compare",
    "verifies the variants of an op against its definition, then times them beside what the machine can do",
    []() -> std::unique_ptr<Command> { return std::make_unique<CompareCommand>(); }};

}  // namespace vqlab
