// What this machine can do at best: the measures against which `compare` gives shares.
#pragma once

#include <vector>

namespace vqlab {

// The fp32 product of two 1024 x 1024 matrices by oneDNN, each worker on its own rows.
class ProductCeiling {
 public:
  static constexpr double kFlop = 2.0 * 1024 * 1024 * 1024;
  ProductCeiling();
  // One product. Throws Error(failed) if oneDNN fails.
  void run();

 private:
  std::vector<float> a_, b_, c_;
};

// A copy of a buffer larger than the last-level cache by all workers.
class CopyCeiling {
 public:
  CopyCeiling();
  double bytes() const { return 2.0 * double(from_.size()); }  // read and written
  void run();

 private:
  std::vector<unsigned char> from_, to_;
};

struct Ceilings {
  double copy_gb_s = 0.0, product_tflop_s = 0.0;  // medians
};
// Takes about `seconds` for each of the two.
Ceilings measure_ceilings(double seconds);

}  // namespace vqlab
