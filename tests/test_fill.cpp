#include "kernels/core/fill.hpp"

#include <limits>

#include "kernels/core/parallel.hpp"
#include "testing.hpp"

namespace vqlab {
namespace {

using testing::Guarded;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

int64_t elements_that_differ(Guarded<float>& buffer, float value) {
  int64_t count = 0;
  for (int64_t i = 0; i < buffer.size(); ++i) count += bits_of(buffer.data()[i]) != bits_of(value);
  return count;
}

TEST_CASE("fill: sets every element and nothing beside them", "[unit]") {
  // The last sizes cut into several pieces, one of them ragged.
  for (const int64_t size : {1, 3, 31, 32, 33, 1000, 65536, 65537, 200003})
    for (const int64_t offset : {0, 1})
      for (const float value : {0.0f, -0.0f, 1.5f, std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()})
        for (const int workers : {1, 2, 3}) {
          INFO("size " << size << " offset " << offset << " value " << value << " workers " << workers);
          set_worker_count(workers);
          Guarded<float> buffer(size, offset);
          // Guarded begins as one NaN pattern, which the value must not happen to be.
          REQUIRE(elements_that_differ(buffer, value) == size);
          run(FillOp{.output = buffer.view({size}), .value = value}, Stream{});
          CHECK(elements_that_differ(buffer, value) == 0);
          buffer.check_guards();
        }
  set_worker_count(0);
}

TEST_CASE("fill: an empty output is left alone", "[unit]") {
  Guarded<float> buffer(4);
  const uint32_t before = bits_of(buffer.data()[0]);
  run(FillOp{.output = buffer.view({0, 4}), .value = 1.0f}, Stream{});
  run(FillOp{.output = View<float>(), .value = 1.0f}, Stream{});
  CHECK(bits_of(buffer.data()[0]) == before);
  buffer.check_guards();
}

TEST_CASE("fill: an output without memory is refused", "[unit]") {
  const FillOp op{.output = View<float>(nullptr, {4}), .value = 1.0f};
  REQUIRE_THROWS_AS(run(op, Stream{}), Error);
}

}  // namespace
}  // namespace vqlab
