// A pointer with a shape. Never owns, never allocates.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

namespace vqlab {

inline constexpr int kMaxRank = 4;

// A dense row-major array of rank 1 to 4; the last dimension is contiguous. Images are NHWC.
// A default View has no data and no elements: an optional operand that is absent.
template <class T>
struct View {
  T* data = nullptr;
  std::array<int64_t, kMaxRank> dim{0, 1, 1, 1};
  int rank = 0;

  View() = default;
  View(T* pointer, std::initializer_list<int64_t> dims) : data(pointer), rank(int(dims.size())) {
    dim = {1, 1, 1, 1};
    int i = 0;
    for (int64_t d : dims) dim[size_t(i++)] = d;
  }
  // From View<T> to View<const T>.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) View(const View<U>& v)
      : data(v.data), dim(v.dim), rank(v.rank) {}

  int64_t operator[](int i) const { return dim[size_t(i)]; }
  int64_t size() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
  int64_t bytes() const { return size() * int64_t(sizeof(T)); }
  explicit operator bool() const { return data != nullptr; }

  // The same elements as a matrix: the last dimension stays, the others become rows. (B, H, W, D) -> (N, D).
  View<T> rows() const {
    const int64_t last = dim[size_t(rank - 1)];
    return View<T>(data, {last == 0 ? 0 : size() / last, last});
  }
  // "(128, 7, 7, 16)"
  std::string shape() const {
    std::string text = "(";
    for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dim[size_t(i)]);
    return text + ")";
  }
};

template <class A, class B>
bool same_shape(const View<A>& a, const View<B>& b) {
  return a.rank == b.rank && a.dim == b.dim;
}

}  // namespace vqlab
