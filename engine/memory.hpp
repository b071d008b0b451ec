// Slabs: memory is planned before the first step and never allocated after it.
//
// A plan is a function that takes its parts from a slab. It runs twice: first the slab only measures (the
// views have a shape but no data), then it is allocated and the same function gets the real views. So layout
// and size cannot differ.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "runtime.hpp"

namespace vqlab {

class Slab {
 public:
  explicit Slab(std::string name, MemoryKind kind = MemoryKind::device)
      : name_(std::move(name)), kind_(kind) {}

  // The next part, of the given shape, aligned to 256 bytes. Measuring: without data.
  template <class T>
  View<T> take(std::initializer_list<int64_t> dims) {
    View<T> view(nullptr, dims);
    const int64_t offset = reserve(view.bytes());
    if (block_) view.data = reinterpret_cast<T*>(block_.get() + offset);
    return view;
  }

  // Ends the measuring pass: allocates what was taken, zeroed, and starts the second pass.
  void allocate(const Runtime& runtime);
  // Starts a new measuring pass; only before allocate().
  void rewind() { used_ = 0; }

  const std::string& name() const { return name_; }
  int64_t bytes() const { return std::max(used_, allocated_); }

 private:
  int64_t reserve(int64_t bytes);

  std::string name_;
  MemoryKind kind_;
  int64_t used_ = 0, allocated_ = 0;
  Block block_;
};

// Activations and their gradients, and one scratch area that all ops share, since they run one after another.
class Arena {
 public:
  explicit Arena(Device device) : device_(device) {}
  Device device() const { return device_; }
  template <class T>
  View<T> take(std::initializer_list<int64_t> dims) {
    return activations_.take<T>(dims);
  }
  // At least `bytes` bytes that are undefined after the next op.
  View<std::byte> scratch(int64_t bytes) {
    scratch_bytes_ = std::max(scratch_bytes_, bytes);
    return {scratch_view_.data, {bytes}};
  }
  void allocate(const Runtime& runtime) {
    activations_.allocate(runtime);
    scratch_view_ = scratch_.take<std::byte>({scratch_bytes_});
    scratch_.allocate(runtime);
    scratch_view_ = scratch_.take<std::byte>({scratch_bytes_});
  }
  bool allocated() const { return bool(scratch_view_); }
  int64_t activation_bytes() const { return activations_.bytes(); }
  int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  Device device_;
  Slab activations_{"activations"}, scratch_{"scratch"};
  View<std::byte> scratch_view_;
  int64_t scratch_bytes_ = 0;
};

// "3.2 MiB"
std::string format_bytes(int64_t bytes);

}  // namespace vqlab
