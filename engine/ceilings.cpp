#include "ceilings.hpp"

#include <cstring>
#include <functional>
#include <vector>

#include "kernels/codebook/gemm_product.hpp"
#include "kernels/core/copy.hpp"
#include "kernels/core/fill.hpp"
#include "kernels/core/onednn_product.hpp"
#include "kernels/core/parallel.hpp"
#include "measure.hpp"

namespace vqlab {
namespace {

double product_flop(int64_t side) { return 2.0 * double(side) * double(side) * double(side); }

class CpuProduct : public Yardstick {
 public:
  CpuProduct() : a_(size_t(kSide * kSide), 0.5f), b_(a_), c_(a_) {}
  double work() const override { return product_flop(kSide); }
  void run() override {
    const int64_t workers = worker_count();
    parallel_for(workers, [&](int64_t shard, int) {
      const int64_t begin = kSide * shard / workers, rows = kSide * (shard + 1) / workers - begin;
      onednn_product(c_.data() + begin * kSide, a_.data() + begin * kSide, b_.data(), rows, kSide, kSide,
                     RightFactor::plain);
    });
  }

 private:
  static constexpr int64_t kSide = 1024;
  std::vector<float> a_, b_, c_;
};

class CpuCopy : public Yardstick {
 public:
  CpuCopy() : from_(size_t(4 * last_level_cache_bytes(Device::cpu)), 1), to_(from_) {}
  double work() const override { return 2.0 * double(from_.size()); }
  void run() override {
    constexpr int64_t kPiece = int64_t(1) << 20;
    parallel_ranges(int64_t(from_.size()), kPiece, [&](int64_t begin, int64_t end) {
      std::memcpy(to_.data() + begin, from_.data() + begin, size_t(end - begin));
    });
  }

 private:
  std::vector<unsigned char> from_, to_;
};

// A float array in device memory.
struct DeviceFloats {
  Block block;
  View<float> view;
  DeviceFloats(const Runtime& runtime, std::initializer_list<int64_t> dims, float value)
      : view(nullptr, dims) {
    block = runtime.allocate(view.bytes(), MemoryKind::device, "yardstick");
    view.data = reinterpret_cast<float*>(block.get());
    run(FillOp{view, value}, runtime.compute());
  }
};

class GpuProduct : public Yardstick {
 public:
  explicit GpuProduct(const Runtime& runtime)
      : stream_(runtime.compute()),
        a_(runtime, {kSide, kSide}, 0.5f),
        b_(runtime, {kSide, kSide}, 0.5f),
        c_(runtime, {kSide, kSide}, 0.0f),
        workspace_(runtime.allocate(kWorkspace, MemoryKind::device, "workspace of the yardstick")) {
    run();  // throws where there is no cuBLASLt
  }
  double work() const override { return product_flop(kSide); }
  void run() override {
    if constexpr (kWithCuda)
      gemm_product(c_.view.data, a_.view.data, b_.view.data, kSide, kSide, kSide,
                   {workspace_.get(), {kWorkspace}}, stream_);
  }

 private:
  static constexpr int64_t kSide = 8192, kWorkspace = int64_t(32) << 20;
  Stream stream_;
  DeviceFloats a_, b_, c_;
  Block workspace_;
};

class GpuCopy : public Yardstick {
 public:
  explicit GpuCopy(const Runtime& runtime)
      : stream_(runtime.compute()), from_(runtime, {kSize}, 1.0f), to_(runtime, {kSize}, 0.0f) {}
  double work() const override { return 2.0 * double(from_.view.bytes()); }
  void run() override { vqlab::run(CopyOp{to_.view, from_.view}, stream_); }

 private:
  static constexpr int64_t kSize = int64_t(1) << 28;  // 1 GiB
  Stream stream_;
  DeviceFloats from_, to_;
};

}  // namespace

std::unique_ptr<Yardstick> make_copy_yardstick(const Runtime& runtime) {
  if (runtime.device() == Device::cpu) return std::make_unique<CpuCopy>();
  return std::make_unique<GpuCopy>(runtime);
}

std::unique_ptr<Yardstick> make_product_yardstick(const Runtime& runtime) {
  if (runtime.device() == Device::cpu) return std::make_unique<CpuProduct>();
  return std::make_unique<GpuProduct>(runtime);
}

Ceilings measure_ceilings(const Runtime& runtime, double seconds) {
  Ceilings ceilings{.copy = make_copy_yardstick(runtime)};
  std::vector<std::function<void()>> calls = {[&] { ceilings.copy->run(); }};
  try {
    ceilings.product = make_product_yardstick(runtime);
    calls.push_back([&] { ceilings.product->run(); });
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::device) throw;
    ceilings.product_problem = error.what();
  }
  const std::vector<Timing> timings = measure(calls, {.seconds = seconds, .cold = false}, runtime);
  ceilings.copy_gb_s = ceilings.copy->work() / timings[0].median_ms * 1e-6;
  if (ceilings.product) ceilings.product_tflop_s = ceilings.product->work() / timings[1].median_ms * 1e-9;
  return ceilings;
}

}  // namespace vqlab
