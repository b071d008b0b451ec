// exp, log and tanh from IEEE operations alone, in double: the same bits on every device, where the
// libraries' own differ in the last place. Relative error below 1e-15.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.hpp"

namespace vqlab {

// 2^exponent, of a normal number.
VQ_HOST_DEVICE inline double power_of_two(int exponent) {
  const uint64_t bits = uint64_t(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// e^x, x limited to [-700, 700]; NaN stays NaN. x = k ln 2 + r, and Taylor's series of e^r, |r| < 0.35.
VQ_HOST_DEVICE inline double portable_exp(double x) {
  constexpr double kLimit = 700.0, kLog2E = 1.4426950408889634, kLn2High = 6.93147180369123816490e-01,
                   kLn2Low = 1.90821492927058770002e-10;
  if (x != x) return x;
  x = x < -kLimit ? -kLimit : x > kLimit ? kLimit : x;
  const double k = floor(x * kLog2E + 0.5);
  const double r = (x - k * kLn2High) - k * kLn2Low;
  constexpr double k2 = 1.0 / 2, k3 = k2 / 3, k4 = k3 / 4, k5 = k4 / 5, k6 = k5 / 6, k7 = k6 / 7, k8 = k7 / 8,
                   k9 = k8 / 9, k10 = k9 / 10, k11 = k10 / 11, k12 = k11 / 12, k13 = k12 / 13;
  double series = k13 * r + k12;
  series = series * r + k11;
  series = series * r + k10;
  series = series * r + k9;
  series = series * r + k8;
  series = series * r + k7;
  series = series * r + k6;
  series = series * r + k5;
  series = series * r + k4;
  series = series * r + k3;
  series = series * r + k2;
  series = series * r + 1.0;
  series = series * r + 1.0;
  return series * power_of_two(int(k));
}

// ln x of a normal, positive x. x = 2^k m, m in [0.7, 1.42), and the series of 2 artanh((m - 1) / (m + 1)).
VQ_HOST_DEVICE inline double portable_log(double x) {
  constexpr double kLn2 = 6.93147180559945309417e-01, kSqrt2 = 1.4142135623730951;
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int k = int(bits >> 52) - 1023;
  double m = x * power_of_two(k == 1023 ? -1022 : -k);
  if (k == 1023) m *= 0.5;
  if (m > kSqrt2) {
    m *= 0.5;
    ++k;
  }
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double series = 0.0;
  for (int i = 21; i >= 1; i -= 2) series = series * square + 1.0 / double(i);
  return double(k) * kLn2 + 2.0 * s * series;
}

// Absolute error below 1e-15, rounded to float.
VQ_HOST_DEVICE inline float portable_tanh(float x) {
  const double e = portable_exp(-2.0 * (x < 0.0f ? -double(x) : double(x)));
  const double t = (1.0 - e) / (1.0 + e);
  return float(x < 0.0f ? -t : t);
}

}  // namespace vqlab
