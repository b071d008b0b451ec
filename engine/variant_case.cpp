#include "variant_case.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/core/names.hpp"
#include "kernels/core/parallel.hpp"
#include "kernels/core/random.hpp"

namespace vqlab {

extern const VariantOp lookup_variant_op, cluster_sums_variant_op, skewed_sums_variant_op,
    quantize_variant_op;

std::string VariantShape::text() const { return fmt::format("{},{},{}", N, K, D); }

const char* device_text(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

std::span<const VariantOp* const> variant_ops() {
  static constexpr const VariantOp* kOps[] = {&lookup_variant_op, &cluster_sums_variant_op,
                                              &skewed_sums_variant_op, &quantize_variant_op};
  return kOps;
}

const VariantOp& find_variant_op(std::string_view name) {
  std::vector<std::string_view> names;
  std::string list;
  for (const VariantOp* op : variant_ops()) {
    if (op->name == name) return *op;
    names.push_back(op->name);
    list += fmt::format("{}{}", list.empty() ? "" : ", ", op->name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(ErrorKind::usage, fmt::format("unknown op '{}'", name),
              fmt::format("{}the ops with variants are: {}",
                          near.empty() ? "" : fmt::format("did you mean '{}'? ", near), list),
              "--op");
}

VariantInfo find_variant(const VariantOp& op, Device device, std::string_view name) {
  std::vector<std::string_view> names;
  for (const VariantInfo& variant : op.variants(device)) {
    if (variant.name == name) return variant;
    names.push_back(variant.name);
  }
  const Device other = device == Device::cpu ? Device::cuda : Device::cpu;
  for (const VariantInfo& variant : op.variants(other))
    if (variant.name == name)
      throw Error(ErrorKind::usage,
                  fmt::format("{} variant '{}' does not run on {}", op.name, name, device_text(device)),
                  fmt::format("use --device {}; `vqlab compare --list` shows all", device_text(other)),
                  "--variant");
  const std::string near = nearest_name(name, names);
  throw Error(ErrorKind::usage, fmt::format("unknown {} variant '{}'", op.name, name),
              fmt::format("{}`vqlab compare --list` shows all",
                          near.empty() ? "" : fmt::format("did you mean '{}'? ", near)),
              "--variant");
}

std::vector<float> case_numbers(int64_t count, uint32_t tensor, CaseData data) {
  const RandomKey key{.seed = 0, .step = 0, .use = RandomUse::codebook, .tensor = tensor};
  std::vector<float> values(static_cast<size_t>(count));
  // A block of random bits gives four numbers. In float: the largest case has 3e8 of them.
  parallel_ranges((count + 3) / 4, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto bits = random_bits(key, uint64_t(i));
      float normal[4];
      for (size_t half = 0; half < 4; half += 2) {
        const auto uniform = float((double(bits.v[half]) + 1.0) * 0x1p-32);
        const auto angle = float(double(bits.v[half + 1]) * 0x1p-31 * std::numbers::pi);
        const float radius = std::sqrt(-2.0f * std::log(uniform));
        normal[half] = radius * std::cos(angle);
        normal[half + 1] = radius * std::sin(angle);
      }
      for (int64_t j = 4 * i; j < std::min(4 * i + 4, count); ++j) {
        const float number = normal[j - 4 * i];
        values[size_t(j)] = data == CaseData::hard ? std::nearbyint(number) : number;
      }
    }
  });
  return values;
}

}  // namespace vqlab
