// A test that runs the same operands through an op on the CPU and on the device and compares the bits.
#pragma once

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "device_testing.hpp"
#include "nn_buffers.hpp"

namespace vqlab::testing {

// Stands for DeviceArray where the CPU runs.
template <class T>
class HostArray {
 public:
  explicit HostArray(const std::vector<T>& values) : values_(values) {}
  View<T> view(std::initializer_list<int64_t> dims) { return View<T>(values_.data(), dims); }
  View<T> view() { return View<T>(values_.data(), {int64_t(values_.size())}); }
  std::vector<T> download() const { return values_; }

 private:
  std::vector<T> values_;
};

// Where a test runs its op: it makes its arrays by array(), gives the op stream(), and calls wait() before
// arrays of an op die, unless it has downloaded one.
struct OnCpu {
  template <class T>
  HostArray<T> array(const std::vector<T>& values, int64_t = 0) const {
    return HostArray<T>(values);
  }
  Stream stream() const { return {}; }
  void wait() const {}
};
struct OnDevice {
  template <class T>
  DeviceArray<T> array(const std::vector<T>& values, int64_t offset = 0) const {
    return DeviceArray<T>(values, offset);
  }
  Stream stream() const { return device_stream(); }
  void wait() const { synchronize(); }
};

// Fails unless the bits are equal. NaN equals NaN: that of a GPU has another sign than that of a CPU.
template <class T>
void require_same(const std::vector<T>& actual, const std::vector<T>& expected, const std::string& what) {
  REQUIRE(actual.size() == expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if constexpr (std::is_floating_point_v<T>)
      if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0)
      FAIL(what << ": element " << i << " of " << actual.size() << " is " << actual[i] << ", not "
                << expected[i]);
  }
}

// test(place) runs an op and returns a tuple of vectors, the result; compares that of the device, under every
// schedule, with that of the CPU.
template <class Test>
void require_same_on_both(const std::string& what, const Test& test) {
  const auto expected = test(OnCpu{});
  for_each_schedule([&] {
    const auto actual = test(OnDevice{});
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
      (require_same(std::get<kIndex>(actual), std::get<kIndex>(expected),
                    what + ", result " + std::to_string(kIndex)),
       ...);
    }
    (std::make_index_sequence<std::tuple_size_v<std::remove_cvref_t<decltype(expected)>>>{});
  });
}

// What names a case.
inline std::string text(std::initializer_list<int64_t> sizes) {
  std::string line;
  for (const int64_t size : sizes) line += (line.empty() ? "" : " ") + std::to_string(size);
  return line;
}

inline std::vector<float> poison(int64_t size) { return std::vector<float>(size_t(size), kNan); }

// Normal numbers with NaN, both infinities, -0, the smallest and the largest float among them.
inline std::vector<float> awkward_floats(int64_t count, uint64_t seed) {
  std::vector<float> values = normal_floats(count, seed);
  const float special[] = {kNan, kInf, -kInf, -0.0f, 0.0f, 1e-45f, -3e38f};
  for (size_t i = 0; i < std::size(special); ++i) {
    const size_t at = (i * 37 + size_t(seed)) * 11 % 251;
    if (int64_t(at) < count) values[at] = special[i];
  }
  return values;
}

}  // namespace vqlab::testing
