// What this machine can do at best: the measures against which `compare` gives shares.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "runtime.hpp"

namespace vqlab {

// A call whose speed is a ceiling; as a candidate of measure().
class Yardstick {
 public:
  virtual ~Yardstick() = default;
  virtual double work() const = 0;  // of one run: bytes read and written, or floating-point operations
  virtual void run() = 0;           // on a GPU enqueues on the compute stream
};

// A copy of a buffer larger than the last-level cache: by all workers, or by CopyOp on a GPU.
std::unique_ptr<Yardstick> make_copy_yardstick(const Runtime& runtime);

// An fp32 product of two square matrices: 1024 by oneDNN on the CPU, each worker on its own rows; 8192 by
// cuBLASLt on a GPU. Throws Error(device) without cuBLASLt.
std::unique_ptr<Yardstick> make_product_yardstick(const Runtime& runtime);

struct Ceilings {
  double copy_gb_s = 0.0;  // medians
  std::optional<double> product_tflop_s = {};
  std::string product_problem = {};  // why there is no product, or ""
  // What was measured, to take turns with other candidates; product is null where it has a problem.
  std::shared_ptr<Yardstick> copy = nullptr, product = nullptr;
};
// Takes about `seconds` for each of the two.
Ceilings measure_ceilings(const Runtime& runtime, double seconds);

}  // namespace vqlab
