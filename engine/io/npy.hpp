// NumPy's .npy format: one array in a file (NEP 1). Written as version 1, C order, little-endian.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/core/view.hpp"

namespace vqlab {

enum class NpyType { u8, u16, u32, f32 };

template <class T>
constexpr NpyType npy_type_of() {
  using Element = std::remove_const_t<T>;
  static_assert(std::is_same_v<Element, uint8_t> || std::is_same_v<Element, uint16_t> ||
                std::is_same_v<Element, uint32_t> || std::is_same_v<Element, float>);
  if constexpr (std::is_same_v<Element, uint8_t>) return NpyType::u8;
  if constexpr (std::is_same_v<Element, uint16_t>) return NpyType::u16;
  if constexpr (std::is_same_v<Element, uint32_t>) return NpyType::u32;
  return NpyType::f32;
}

// As NumPy calls it: "uint8".
constexpr std::string_view npy_type_name(NpyType type) {
  constexpr std::string_view kNames[] = {"uint8", "uint16", "uint32", "float32"};
  return kNames[int(type)];
}

// The bytes of a .npy file; the array has rank 1 to 4 and the type is one of NpyType's.
std::string encode_npy(NpyType type, const std::vector<int64_t>& shape, const void* data);
template <class T>
std::string encode_npy(const View<T>& array) {
  return encode_npy(npy_type_of<T>(), {array.dim.begin(), array.dim.begin() + array.rank}, array.data);
}

// A .npy file in memory, checked as a whole when it is made: versions 1 to 3, rank 0 to 4, C order, one of
// NpyType's types in little-endian order, no byte missing or left over. Throws Error(data) with `where` (the
// path) as place.
class NpyArray {
 public:
  NpyArray(std::string bytes, std::string where);

  NpyType type() const { return type_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t size() const;  // elements

  // The elements; throws Error(data) if they are of another type.
  template <class T>
  std::vector<T> values() const {
    require(npy_type_of<T>());
    std::vector<T> result(size_t(this->size()));
    copy_bytes(result.data());
    return result;
  }
  // The elements of an array of any unsigned type: codes. Throws Error(data) on floats and above 2^31 - 1.
  std::vector<int32_t> codes() const;

 private:
  void require(NpyType type) const;
  void copy_bytes(void* output) const;

  std::string file_, where_;
  NpyType type_ = NpyType::f32;
  std::vector<int64_t> shape_;
  size_t data_begin_ = 0;
};

}  // namespace vqlab
