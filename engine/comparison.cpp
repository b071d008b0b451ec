#include "comparison.hpp"

#include <algorithm>
#include <functional>

namespace vqlab {
namespace {

constexpr int64_t kHardRows = 256;     // of the hard problem that every variant must solve first
constexpr double kCheckedTerms = 1e9;  // (row, code, element) triples that verification may take: seconds
constexpr double kMistrustedShare =
    0.9;  // one code takes more of the rows than this: a constant would nearly pass
constexpr int64_t kRowsOfGpu = 16384;  // 128 for each of 128 multiprocessors
constexpr double kPatience =
    4.0;  // a variant whose one run takes longer than this times the time-out is not timed
constexpr double kYardstickBytes = double(int64_t(4) << 30);  // of a GPU, and its sweep of the caches

bool may_be_timed(const VariantResult& result) {
  return result.status == "ok" || result.status == "MISTRUSTED";
}

class Comparison {
 public:
  Comparison(const VariantOp& op, const VariantShape& shape, const ComparisonOptions& options,
             const Runtime& runtime)
      : op_(op), options_(options), runtime_(runtime) {
    const double rows = kCheckedTerms / (double(shape.K) * double(shape.D));
    hard_ = op.make(runtime, {std::min(shape.N, kHardRows), shape.K, shape.D}, CaseData::hard, kHardRows);
    plain_ = op.make(runtime, shape, CaseData::plain, std::max(int64_t(16), int64_t(rows)));
  }
  VariantResult verify(const VariantInfo& variant) const;
  void time(std::vector<VariantResult>& results, const Ceilings& ceilings) const;
  void repeat(VariantResult& result) const;

 private:
  const VariantOp& op_;
  const ComparisonOptions& options_;
  const Runtime& runtime_;
  std::unique_ptr<VariantCase> hard_, plain_;
};

VariantResult Comparison::verify(const VariantInfo& variant) const {
  VariantResult result{.variant = variant, .shape = plain_->shape()};
  if (!plain_->supports(variant.name) || !hard_->supports(variant.name)) {
    result.status = "UNSUPPORTED";
    return result;
  }
  const std::function<void()> probe = [&] { hard_->run(variant.name); };
  const double probe_ms =
      measure({&probe, 1}, {.min_samples = 1, .seconds = 0.0, .cold = false}, runtime_)[0].min_ms;
  result.wrong = hard_->wrong();
  result.rows_checked = hard_->rows_checked();
  // A GPU takes about as long for the few rows of the hard problem as for all that it can hold at a time.
  const int64_t rows_at_once =
      runtime_.device() == Device::cuda ? std::max(kRowsOfGpu, hard_->shape().N) : hard_->shape().N;
  const double expected_seconds = 1e-3 * probe_ms * double(plain_->shape().N) / double(rows_at_once);
  if (expected_seconds <= kPatience * std::max(1.0, options_.seconds)) {
    LaunchLog log;
    plain_->run(variant.name);
    result.kernels = log.kernels();
    result.wrong += plain_->wrong();
    result.rows_checked += plain_->rows_checked();
    if (plain_->shape().K > 1 && plain_->largest_share() > kMistrustedShare) result.status = "MISTRUSTED";
  } else {
    result.status = "TOO SLOW";
  }
  if (result.wrong > 0 && (variant.exact || op_.bounds_rounding)) result.status = "WRONG";
  return result;
}

// The yardsticks run between the variants, so that a busy machine slows both sides of a share. Where caches
// stay warm the copy would sweep them: its speed is then that at the start.
void Comparison::time(std::vector<VariantResult>& results, const Ceilings& ceilings) const {
  std::vector<std::function<void()>> calls;
  std::vector<VariantResult*> timed;
  for (VariantResult& result : results) {
    if (!may_be_timed(result)) continue;
    timed.push_back(&result);
    calls.push_back([this, name = result.variant.name] { plain_->run(name); });
  }
  if (timed.empty()) return;
  const Yardstick* product = ceilings.product.get();
  const Yardstick* copy = options_.hot ? nullptr : ceilings.copy.get();
  if (product != nullptr) calls.push_back([&] { ceilings.product->run(); });
  if (copy != nullptr) calls.push_back([&] { ceilings.copy->run(); });
  const std::vector<Timing> timings =
      measure(calls, {.seconds = options_.seconds, .cold = !options_.hot}, runtime_);
  const double product_tflop_s =
      product != nullptr ? product->work() / timings[timed.size()].median_ms * 1e-9 : 0.0;
  const double copy_gb_s =
      copy != nullptr ? copy->work() / timings.back().median_ms * 1e-6 : ceilings.copy_gb_s;
  for (size_t i = 0; i < timed.size(); ++i) {
    VariantResult& result = *timed[i];
    result.timing = timings[i];
    result.gb_s = op_.bytes(result.shape) / timings[i].median_ms * 1e-6;
    result.tflop_s = op_.flop(result.shape) / timings[i].median_ms * 1e-9;
    result.copy_gb_s = copy_gb_s;
    result.product_tflop_s = product_tflop_s;
    result.share = result.gb_s / copy_gb_s;
    if (product != nullptr) result.share = std::max(result.share, result.tflop_s / product_tflop_s);
  }
}

void Comparison::repeat(VariantResult& result) const {
  {
    const ProfilerCapture capture(runtime_);  // a profiler that waits for it sees this run alone
    plain_->run(result.variant.name);
  }
  const std::vector<std::byte> output = plain_->output();
  plain_->run(result.variant.name);
  result.deterministic = plain_->output() == output;
}

}  // namespace

// On the CPU the answers are worked out beside the operands; on a GPU they stay on the host.
void require_memory_for(const VariantOp& op, const VariantShape& shape, const Runtime& runtime) {
  const double operands = op.bytes(shape);
  bool fits = 2.0 * operands <= double(available_bytes());
  if (fits && runtime.device() == Device::cuda)
    fits = operands + double(op.scratch_bytes(Device::cuda, shape)) + kYardstickBytes <=
           double(runtime.available_device_bytes());
  if (!fits)
    throw Error(ErrorKind::usage, fmt::format("shape {} does not fit into memory", shape.text()),
                "use fewer latents, codes or elements", "--shape");
}

std::vector<VariantResult> compare_variants(const VariantOp& op, const std::vector<VariantInfo>& variants,
                                            const VariantShape& shape, const Ceilings& ceilings,
                                            const ComparisonOptions& options, const Runtime& runtime) {
  const Comparison comparison(op, shape, options, runtime);
  std::vector<VariantResult> results;
  for (const VariantInfo& variant : variants) results.push_back(comparison.verify(variant));
  if (options.timed) comparison.time(results, ceilings);
  for (VariantResult& result : results)
    if (may_be_timed(result)) comparison.repeat(result);
  return results;
}

}  // namespace vqlab
