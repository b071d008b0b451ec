// Ops with several variants, as `compare` and `doctor` see them: whichever op it is.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guarded_block.hpp"

namespace vqlab {

// Latents (N, D) and a codebook (K, D).
struct VariantShape {
  int64_t N, K, D;
  std::string text() const;  // "65536,512,64"
};

// plain: as in practice. hard: what a careless variant gets wrong, on integers, so that every order of a sum
// gives the same bits.
enum class CaseData { plain, hard };

// What the tables of variants have in common.
struct VariantInfo {
  std::string_view name, idea;
  Device device;
  bool exact;         // equals the definition bit for bit
  bool reproducible;  // the same bits in every run
};

// A problem with its operands in device memory and its answers, which the definition gave on the CPU.
class VariantCase {
 public:
  virtual ~VariantCase() = default;

  virtual bool supports(std::string_view variant) const = 0;
  // Enqueues a variant that supports the shape on the compute stream.
  virtual void run(std::string_view variant) = 0;
  // Checked rows where the last run differs from the answers; of an inexact variant, where VariantOp says so,
  // by more than rounding may. Waits.
  virtual int64_t wrong() const = 0;
  virtual int64_t rows_checked() const = 0;
  // The name of an array that a run wrote outside of, or "". Waits.
  virtual std::string overrun() const = 0;
  // Of the latents, those of the most frequent code: near 1, a constant function would nearly pass.
  virtual double largest_share() const = 0;
  // What the last run wrote. Waits.
  virtual std::vector<std::byte> output() const = 0;

  const VariantShape& shape() const { return shape_; }

 protected:
  explicit VariantCase(const VariantShape& shape) : shape_(shape) {}
  VariantShape shape_;
};

// An entry of the table of ops with variants.
struct VariantOp {
  std::string_view name;
  bool bounds_rounding;  // what wrong() counts is a defect of an inexact variant too
  std::vector<VariantInfo> (*variants)(Device device);  // in order of preference
  double (*flop)(const VariantShape& shape);
  double (*bytes)(
      const VariantShape& shape);  // compulsory traffic: operands read, results written, once each
  int64_t (*scratch_bytes)(Device device, const VariantShape& shape);
  // Computes the answers of at most `rows_to_check` rows, spread evenly from the first to the last.
  std::unique_ptr<VariantCase> (*make)(const Runtime& runtime, const VariantShape& shape, CaseData data,
                                       int64_t rows_to_check);
  // The op of choose_kernels whose variant `compare --tune` chooses by this case, which is then the form that
  // runs compute; "": none.
  std::string_view decides = "";
};

std::span<const VariantOp* const> variant_ops();

// By name, or Error(usage) with the nearest valid name.
const VariantOp& find_variant_op(std::string_view name);
// The same for a variant; one of the other device is not found either, and the hint says where it runs.
VariantInfo find_variant(const VariantOp& op, Device device, std::string_view name);

// "cpu" or "cuda", as --device takes it.
const char* device_text(Device device);

// A copy of host values in device memory; done when it returns.
template <class T>
Block to_device(const std::vector<T>& values, const Runtime& runtime, const std::string& what) {
  const auto bytes = int64_t(values.size() * sizeof(T));
  Block block = runtime.allocate(bytes, MemoryKind::device, what);
  runtime.upload(block.get(), values.data(), bytes, runtime.compute());
  runtime.synchronize(runtime.compute());
  return block;
}

// Standard normal numbers (Box and Muller 1958), the same for equal `tensor`; rounded to integers for hard
// data.
std::vector<float> case_numbers(int64_t count, uint32_t tensor, CaseData data);

}  // namespace vqlab
