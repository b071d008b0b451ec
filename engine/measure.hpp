// The timing loop of `compare`.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "runtime.hpp"

namespace vqlab {

struct MeasureOptions {
  int64_t min_samples = 10;
  double precision = 0.005;  // wanted relative standard deviation of the median
  double seconds = 5.0;  // per candidate, its cache sweeps included: then it stops, after at least one sample
  bool cold = true;      // sweep the caches before every sample
};

struct Timing {
  double median_ms = 0.0, q1_ms = 0.0, q3_ms = 0.0, iqr_ms = 0.0, min_ms = 0.0;  // q1, q3: quartiles
  int64_t samples = 0;
  bool settled = false;  // the wanted precision was reached, with min_samples
};

// Times the candidates in turn (A B A B ...), so that a drift of the machine hits all alike, each after one
// call to warm up. A candidate leaves the round when it is settled or out of time. On the CPU a candidate is
// done when it returns, and the clock is the host's. On a GPU it enqueues on the compute stream, and a sample
// is the time between two events; what runs before the first of them (the sweep of the caches or, if they
// stay warm, the candidate itself) gives the host time to enqueue, so that its launches are not in the
// sample.
std::vector<Timing> measure(std::span<const std::function<void()>> candidates, const MeasureOptions& options,
                            const Runtime& runtime);

// Median, spread and precision of samples in ms; at least one. For a sample of size n the median's standard
// deviation is taken as 1.2533 sigma / sqrt(n), with sigma = iqr / 1.349, as for normal noise, but robust
// against outliers.
Timing summarise(std::vector<double> samples_ms, const MeasureOptions& options);

// Bytes of the last-level cache: that one core reaches, 32 MiB where the system does not tell; of a GPU an
// upper limit of all (B200: 126 MiB).
int64_t last_level_cache_bytes(Device device);

}  // namespace vqlab
