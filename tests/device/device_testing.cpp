#include "device_testing.hpp"

namespace vqlab::testing {

const Runtime& device_runtime() {
  static const Runtime runtime("cuda", 0);
  return runtime;
}

}  // namespace vqlab::testing
