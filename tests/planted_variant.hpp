// A variant of a kernel that no table has: what tests of verification put in the place of a real one.
#pragma once

#include "kernels/core/variants.hpp"

namespace vqlab::testing {

template <class Op>
Variant<Op> planted_variant(void (*run)(const Op& op, Stream stream)) {
  return {.name = "planted",
          .device = Device::cpu,
          .idea = "",
          .exact = true,
          .supports = [](int64_t, int64_t, int64_t) { return true; },
          .scratch_bytes = [](int64_t, int64_t, int64_t) { return int64_t(0); },
          .run = run};
}

}  // namespace vqlab::testing
