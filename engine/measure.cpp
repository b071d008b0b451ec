#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>

#include "kernels/core/check.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

template <class Call>
double seconds_of(Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Writes to every line of a buffer twice the size of the last-level cache, on every worker, so that the
// private caches are swept as well.
class CacheSweep {
 public:
  explicit CacheSweep(bool cold) : buffer_(cold ? size_t(2 * last_level_cache_bytes()) : 0) {}
  void operator()() {
    parallel_ranges(int64_t(buffer_.size()), int64_t(1) << 20, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += 64) ++buffer_[size_t(i)];
    });
  }

 private:
  std::vector<unsigned char> buffer_;
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
  Timing timing{.median_ms = quantile(samples_ms, 0.5),
                .iqr_ms = quantile(samples_ms, 0.75) - quantile(samples_ms, 0.25),
                .min_ms = samples_ms.front(),
                .samples = int64_t(samples_ms.size())};
  const double deviation = 1.2533 / 1.349 * timing.iqr_ms / std::sqrt(double(timing.samples));
  timing.settled = timing.samples >= options.min_samples && deviation <= options.precision * timing.median_ms;
  return timing;
}

std::vector<Timing> measure(std::span<const std::function<void()>> candidates,
                            const MeasureOptions& options) {
  CacheSweep sweep(options.cold);
  std::vector<Candidate> field;
  for (const std::function<void()>& call : candidates) {
    field.push_back({&call});
    field.back().spent = seconds_of(call);
  }
  for (bool any = true; any;) {
    any = false;
    for (Candidate& candidate : field) {
      if (!candidate.running) continue;
      candidate.spent += seconds_of(sweep);  // on small problems most of the time
      const double seconds = seconds_of(*candidate.call);
      candidate.samples_ms.push_back(1e3 * seconds);
      candidate.spent += seconds;
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
int64_t last_level_cache_bytes() {
  int64_t kib = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kib;  // "32768K"
  return (kib > 0 ? kib : int64_t(32) << 10) << 10;
}

}  // namespace vqlab
