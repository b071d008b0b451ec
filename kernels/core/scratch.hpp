// Parts of an op's scratch, which may itself begin anywhere.
#pragma once

#include "op.hpp"

namespace vqlab {

// Takes parts one after the other, each from a multiple of kAlignment bytes; the same calls measure the
// scratch and find the parts in it.
class ScratchParts {
 public:
  static constexpr uintptr_t kAlignment = 256;

  // To measure.
  ScratchParts() = default;
  // To find the parts; `bytes` is what the same calls have measured. Throws Error(failed) if there are less.
  ScratchParts(const char* op, const View<std::byte>& scratch, int64_t bytes) {
    require_scratch(op, scratch, bytes);
    base_ = (reinterpret_cast<uintptr_t>(scratch.data) + kAlignment - 1) / kAlignment * kAlignment;
  }

  // `count` elements.
  template <class T>
  T* take(int64_t count) {
    const uintptr_t part = base_ + end_;
    end_ = (end_ + size_t(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(part);
  }
  // What was taken, and room to align the beginning.
  int64_t bytes() const { return int64_t(end_ + kAlignment); }

 private:
  uintptr_t base_ = 0, end_ = 0;
};

}  // namespace vqlab
