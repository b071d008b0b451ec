#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>

#include "kernels/core/fill.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

template <class Call>
double seconds_of(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Writes to every line of a buffer twice the size of the last-level cache; on the CPU by every worker, so
// that the private caches are swept as well.
class CacheSweep {
 public:
  CacheSweep(const Runtime& runtime, bool cold)
      : stream_(runtime.compute()), bytes_(cold ? 2 * last_level_cache_bytes(runtime.device()) : 0) {
    if (cold) buffer_ = runtime.allocate(bytes_, MemoryKind::device, "sweep of the caches");
  }
  void operator()() const {
    if (stream_.device == Device::cuda) {
      const View<float> floats(reinterpret_cast<float*>(buffer_.get()), {bytes_ / int64_t(sizeof(float))});
      return run(FillOp{floats, 1.0f}, stream_);
    }
    auto* const bytes = reinterpret_cast<unsigned char*>(buffer_.get());
    parallel_ranges(bytes_, int64_t(1) << 20, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += 64) ++bytes[i];
    });
  }

 private:
  Stream stream_;
  int64_t bytes_;
  Block buffer_;
};

// Takes one sample, with what goes before it.
class Sampler {
 public:
  Sampler(const Runtime& runtime, bool cold)
      : runtime_(runtime),
        cold_(cold),
        sweep_(runtime, cold),
        start_(runtime, Event::Timing::on),
        stop_(runtime, Event::Timing::on) {}

  void warm_up(const std::function<void()>& call) const {
    call();
    runtime_.synchronize(runtime_.compute());
  }

  double milliseconds(const std::function<void()>& call) {
    if (cold_) sweep_();
    if (runtime_.device() == Device::cpu) return 1e3 * seconds_of(call);
    if (!cold_) call();
    start_.record(runtime_.compute());
    call();
    stop_.record(runtime_.compute());
    stop_.wait();
    return stop_.milliseconds_since(start_);
  }

 private:
  const Runtime& runtime_;
  bool cold_;
  CacheSweep sweep_;
  Event start_, stop_;
};

// Linear interpolation between the order statistics.
double quantile(const std::vector<double>& sorted, double fraction) {
  const double position = fraction * double(sorted.size() - 1);
  const auto below = size_t(position);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - double(below)) * (sorted[above] - sorted[below]);
}

struct Candidate {
  const std::function<void()>* call;
  std::vector<double> samples_ms = {};
  double spent = 0.0;
  bool running = true;
};

}  // namespace

Timing summarise(std::vector<double> samples_ms, const MeasureOptions& options) {
  VQ_REQUIRE(!samples_ms.empty(), "summarise: no samples");
  std::sort(samples_ms.begin(), samples_ms.end());
  const double q1 = quantile(samples_ms, 0.25), q3 = quantile(samples_ms, 0.75);
  Timing timing{.median_ms = quantile(samples_ms, 0.5),
                .q1_ms = q1,
                .q3_ms = q3,
                .iqr_ms = q3 - q1,
                .min_ms = samples_ms.front(),
                .samples = int64_t(samples_ms.size())};
  const double deviation = 1.2533 / 1.349 * timing.iqr_ms / std::sqrt(double(timing.samples));
  timing.settled = timing.samples >= options.min_samples && deviation <= options.precision * timing.median_ms;
  return timing;
}

std::vector<Timing> measure(std::span<const std::function<void()>> candidates, const MeasureOptions& options,
                            const Runtime& runtime) {
  Sampler sampler(runtime, options.cold);
  std::vector<Candidate> field;
  for (const std::function<void()>& call : candidates) {
    field.push_back({&call});
    field.back().spent = seconds_of([&] { sampler.warm_up(call); });
  }
  for (bool any = true; any;) {
    any = false;
    for (Candidate& candidate : field) {
      if (!candidate.running) continue;
      candidate.spent +=  // of small problems most goes into the sweep
          seconds_of([&] { candidate.samples_ms.push_back(sampler.milliseconds(*candidate.call)); });
      candidate.running =
          candidate.spent < options.seconds && !summarise(candidate.samples_ms, options).settled;
      any = any || candidate.running;
    }
  }
  std::vector<Timing> timings;
  for (Candidate& candidate : field) timings.push_back(summarise(std::move(candidate.samples_ms), options));
  return timings;
}

// Not sysconf, which on some virtual machines adds up the caches of the whole host.
int64_t last_level_cache_bytes(Device device) {
  if (device == Device::cuda) return int64_t(128) << 20;
  int64_t kib = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kib;  // "32768K"
  return (kib > 0 ? kib : int64_t(32) << 10) << 10;
}

}  // namespace vqlab
