#include "kernel_choice.hpp"

#include <algorithm>
#include <vector>

#include "kernels/core/check.hpp"
#include "trust.hpp"
#include "tuning.hpp"

namespace vqlab {
namespace {

template <class Op>
const Variant<Op>& forced(const char* op, VariantTable<Op> table, const std::string& name,
                          const VariantShape& shape, Trust* trust, const WarningSink& warn) {
  const std::string key = fmt::format("kernels.{}", op);
  const Variant<Op>& variant = named_variant(op, table, name, key);
  if (!variant.supports(shape.N, shape.K, shape.D))
    throw Error(ErrorKind::usage, fmt::format("{} {} does not support {}", op, name, shape.text()),
                "choose another, or \"auto\"", key);
  if (trust != nullptr)
    if (const Verdict& verdict = trust->verdict(op, name); !verdict.passed)
      warn(fmt::format("{} {} is used as the configuration says, but its self-test fails here: {}", op, name,
                       verdict.reason));
  return variant;
}

// The table, but what was measured to be the fastest at this shape comes first.
template <class Op>
std::vector<const Variant<Op>*> in_order(const char* op, VariantTable<Op> table, const VariantShape& shape,
                                         const Tuning* tuning) {
  std::vector<const Variant<Op>*> order(table.begin(), table.end());
  if (tuning == nullptr || order.empty()) return order;
  const std::string tuned = tuning->variant(op, shape, tuned_threads(order.front()->device));
  std::stable_partition(order.begin(), order.end(),
                        [&](const Variant<Op>* variant) { return variant->name == tuned; });
  return order;
}

template <class Op>
const Variant<Op>* choose(const char* op, VariantTable<Op> table, const std::string& wanted,
                          const VariantShape& shape, Trust* trust, const WarningSink& warn,
                          const Tuning* tuning) {
  if (wanted != "auto") return &forced(op, table, wanted, shape, trust, warn);
  std::string failures;
  for (const Variant<Op>* variant : in_order(op, table, shape, tuning)) {
    if (!variant->exact || !variant->supports(shape.N, shape.K, shape.D)) continue;
    const Verdict verdict = trust == nullptr ? Verdict{true, ""} : trust->verdict(op, variant->name);
    if (!verdict.passed) {
      failures += fmt::format("{}{} {}: {}", failures.empty() ? "" : "; ", op, variant->name, verdict.reason);
      continue;
    }
    if (!failures.empty())
      warn(fmt::format("not used here, since the self-test fails: {}. In its place: {}", failures,
                       variant->name));
    return variant;
  }
  throw Error(ErrorKind::device, fmt::format("no {} kernel can be trusted on this device ({})", op, failures),
              fmt::format("use --device cpu, or force one by kernels.{} in the configuration", op));
}

constexpr const char* kChooseAnew =
    "resume with --new-kernels to choose anew; the last bits of the results may change";

template <class Op>
const Variant<Op>* used_before(const char* op, VariantTable<Op> table, const std::string& name,
                               Trust* trust) {
  for (const Variant<Op>* variant : table) {
    if (variant->name != name) continue;
    if (trust != nullptr)
      if (const Verdict& verdict = trust->verdict(op, name); !verdict.passed)
        throw Error(
            ErrorKind::device,
            fmt::format("the run uses {} {}, whose self-test fails here now: {}", op, name, verdict.reason),
            kChooseAnew);
    return variant;
  }
  throw Error(ErrorKind::checkpoint,
              fmt::format("the run uses {} {}, which this program does not have", op, name), kChooseAnew);
}

}  // namespace

Json RunKernels::to_json() const {
  Json json = Json::object();
  json["device"] = device;
  json["lookup"] = lookup;
  json["cluster_sums"] = cluster_sums;
  return json;
}

RunKernels RunKernels::from_json(const Json& json) {
  return {json.at("device").as_string(), json.at("lookup").as_string(), json.at("cluster_sums").as_string()};
}

RunKernels names_of(const KernelChoice& choice, const std::string& device_name) {
  return {device_name, std::string(choice.lookup->name), std::string(choice.cluster_sums->name)};
}

KernelChoice find_kernels(const RunKernels& used, Device device, Trust* trust) {
  return {
      .lookup = used_before("lookup", lookup_variants(device), used.lookup, trust),
      .cluster_sums = used_before("cluster_sums", cluster_sums_variants(device), used.cluster_sums, trust)};
}

VariantShape quantizer_shape(const Config& config, int64_t batch, int64_t height, int64_t width) {
  const int64_t d = config.model.downsampling;
  return {batch * ((height + d - 1) / d) * ((width + d - 1) / d), config.quantizer.codebook_size,
          config.quantizer.dim};
}

KernelChoice choose_kernels(const KernelsConfig& wanted, Device device, const VariantShape& shape,
                            Trust* trust, const WarningSink& warn, const Tuning* tuning) {
  return {.lookup = choose("lookup", lookup_variants(device), wanted.lookup, shape, trust, warn, tuning),
          .cluster_sums = choose("cluster_sums", cluster_sums_variants(device), wanted.cluster_sums, shape,
                                 trust, warn, tuning)};
}

}  // namespace vqlab
