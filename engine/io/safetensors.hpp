// The safetensors format: named tensors in one file (https://github.com/huggingface/safetensors).
// Layout: header length N (u64, little-endian), N bytes of JSON, then the tensors' bytes without gaps.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/core/view.hpp"

namespace vqlab {

// The element types that are read and written.
enum class TensorType { u8, i32, i64, f32 };

std::string_view tensor_type_name(TensorType type);  // as in the file: "F32"
int64_t tensor_type_bytes(TensorType type);

template <class T>
constexpr TensorType tensor_type_of() {
  using Element = std::remove_const_t<T>;
  static_assert(std::is_same_v<Element, uint8_t> || std::is_same_v<Element, int32_t> ||
                std::is_same_v<Element, int64_t> || std::is_same_v<Element, float>);
  if constexpr (std::is_same_v<Element, uint8_t>) return TensorType::u8;
  if constexpr (std::is_same_v<Element, int32_t>) return TensorType::i32;
  if constexpr (std::is_same_v<Element, int64_t>) return TensorType::i64;
  return TensorType::f32;
}

// A tensor to write; `data` is borrowed.
struct TensorEntry {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<int64_t> shape;  // any rank; empty = one element
  const void* data = nullptr;  // product(shape) elements

  TensorEntry() = default;
  template <class T>
  TensorEntry(std::string tensor_name, const View<T>& view)
      : name(std::move(tensor_name)),
        type(tensor_type_of<T>()),
        shape(view.dim.begin(), view.dim.begin() + view.rank),
        data(view.data) {}
};

using TensorMetadata = std::map<std::string, std::string>;

// The bytes of a safetensors file: equal input in any order gives equal bytes. Tensors stand by element size
// (largest first), then by name. Throws Error(failed) on a name that is empty, "__metadata__" or used twice.
std::string encode_safetensors(std::span<const TensorEntry> tensors, const TensorMetadata& metadata = {});

// A tensor in a file.
struct TensorInfo {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes [begin, end) behind the header
  int64_t size() const { return (end - begin) / tensor_type_bytes(type); }  // elements
};

// A safetensors file in memory, checked as a whole when it is made: header of at most 16 MiB, no duplicate
// names, each size equal to its shape's, tensors that cover the rest of the file without holes or overlaps.
// Throws Error(checkpoint) that names the tensor, with `where` (the path) as place.
class Safetensors {
 public:
  Safetensors(std::string bytes, std::string where);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the order of their bytes
  const TensorMetadata& metadata() const { return metadata_; }
  const TensorInfo* find(std::string_view name) const;     // null if absent
  std::string_view bytes(const TensorInfo& tensor) const;  // little-endian, of no particular alignment

  // The elements of a tensor. Throw Error(checkpoint) if it is absent or of another type; copy_to also if its
  // shape is not the view's.
  template <class T>
  std::vector<T> values(std::string_view name) const {
    const TensorInfo& tensor = require(name, tensor_type_of<T>());
    std::vector<T> result(size_t(tensor.size()));
    copy_bytes(tensor, result.data());
    return result;
  }
  std::vector<float> floats(std::string_view name) const { return values<float>(name); }
  template <class T>
  void copy_to(std::string_view name, const View<T>& output) const {
    const TensorInfo& tensor = require(name, tensor_type_of<T>());
    require_shape(tensor, std::span<const int64_t>(output.dim.data(), size_t(output.rank)));
    copy_bytes(tensor, output.data);
  }

 private:
  const TensorInfo& require(std::string_view name, TensorType type) const;
  void require_shape(const TensorInfo& tensor, std::span<const int64_t> shape) const;
  void copy_bytes(const TensorInfo& tensor, void* output) const;

  std::string file_, where_;
  size_t data_begin_ = 0;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  TensorMetadata metadata_;
};

}  // namespace vqlab
