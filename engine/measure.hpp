// The timing loop of `compare`.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace vqlab {

struct MeasureOptions {
  int64_t min_samples = 10;
  double precision = 0.005;  // wanted relative standard deviation of the median
  double seconds = 5.0;  // per candidate, its cache sweeps included: then it stops, after at least one sample
  bool cold = true;      // sweep the caches before every sample
};

struct Timing {
  double median_ms = 0.0, iqr_ms = 0.0, min_ms = 0.0;
  int64_t samples = 0;
  bool settled = false;  // the wanted precision was reached, with min_samples
};

// Times the candidates in turn (A B A B ...), so that a drift of the machine hits all alike, each after one
// call to warm up. A candidate leaves the round when it is settled or out of time. Steady clock.
std::vector<Timing> measure(std::span<const std::function<void()>> candidates, const MeasureOptions& options);

// Median, spread and precision of samples in ms; at least one. For a sample of size n the median's standard
// deviation is taken as 1.2533 sigma / sqrt(n), with sigma = iqr / 1.349, as for normal noise, but robust
// against outliers.
Timing summarise(std::vector<double> samples_ms, const MeasureOptions& options);

// Bytes of the last-level cache that one core reaches; 32 MiB where the system does not tell.
int64_t last_level_cache_bytes();

}  // namespace vqlab
