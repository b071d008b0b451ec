// What the tests of device code share. They are linked twice: with an emulated device (tests/simt) and with
// the CUDA build, for a machine with a GPU.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "engine/runtime.hpp"
#include "testing.hpp"

namespace vqlab::testing {

// The device under test. One for the whole program.
const Runtime& device_runtime();
inline Stream device_stream() { return device_runtime().compute(); }
inline void synchronize() { device_runtime().synchronize(device_stream()); }

// Runs `body` under several schedules of the emulated device (policies and seeds), or once on a GPU. What
// fails names the schedule.
void for_each_schedule(const std::function<void()>& body);
// The same for few schedules: for bodies that take long.
void for_few_schedules(const std::function<void()>& body);

// What device memory holds, for emulated devices that check: nobody may touch it; nobody may read it before
// it is written; all is allowed.
enum class Bytes { nobodys, undefined, defined };
bool memory_is_checked();
void tell_checkers(const void* address, int64_t bytes, Bytes what);

// An array on the device between two guard bands, its start shifted by `offset` elements from alignment.
template <class T>
class DeviceArray {
 public:
  // Filled with 0xFF bytes: NaN in float, -1 in int.
  explicit DeviceArray(int64_t size, int64_t offset = 0) : size_(size), offset_(offset) {
    std::vector<T> poison(size_t(size), T{});
    if (size > 0) std::memset(static_cast<void*>(poison.data()), 0xFF, poison.size() * sizeof(T));
    allocate(poison);
    tell_checkers(data(), size_ * int64_t(sizeof(T)), Bytes::undefined);
  }
  explicit DeviceArray(const std::vector<T>& values, int64_t offset = 0)
      : size_(int64_t(values.size())), offset_(offset) {
    allocate(values);
  }
  T* data() const { return reinterpret_cast<T*>(block_.get() + kBand) + offset_; }
  int64_t size() const { return size_; }
  View<T> view(std::initializer_list<int64_t> dims) const { return View<T>(data(), dims); }
  View<T> view() const { return View<T>(data(), {size_}); }
  // The values, after everything enqueued; fails the test if a guard band was written.
  std::vector<T> download() const {
    mark_bands(Bytes::defined);
    const std::vector<unsigned char> bytes = to_host(memory(), device_runtime());
    mark_bands(Bytes::nobodys);
    const size_t begin = size_t(kBand) + size_t(offset_) * sizeof(T), end = begin + size_t(size_) * sizeof(T);
    for (size_t i = 0; i < bytes.size(); ++i)
      if ((i < begin || i >= end) && bytes[i] != kPattern)
        FAIL("guard band overwritten at byte " << int64_t(i) - int64_t(begin) << " of an array of "
                                               << end - begin << " bytes");
    std::vector<T> values(size_t(size_), T{});
    if (size_ > 0) std::memcpy(static_cast<void*>(values.data()), bytes.data() + begin, end - begin);
    return values;
  }

 private:
  static constexpr int64_t kBand = 256;
  static constexpr unsigned char kPattern = 0xFF;  // NaN, so that what reads it does not pass unnoticed

  int64_t bytes() const { return 2 * kBand + (offset_ + size_) * int64_t(sizeof(T)); }
  View<const unsigned char> memory() const {
    return {reinterpret_cast<const unsigned char*>(block_.get()), {bytes()}};
  }
  void allocate(const std::vector<T>& values) {
    block_ = device_runtime().allocate(bytes(), MemoryKind::device, "test array");
    std::vector<unsigned char> image(size_t(bytes()), kPattern);
    if (size_ > 0)
      std::memcpy(image.data() + kBand + size_t(offset_) * sizeof(T), static_cast<const void*>(values.data()),
                  values.size() * sizeof(T));
    device_runtime().upload(block_.get(), image.data(), bytes(), device_stream());
    synchronize();
    mark_bands(Bytes::nobodys);
  }
  void mark_bands(Bytes what) const {
    const auto* end = reinterpret_cast<const std::byte*>(data() + size_);
    tell_checkers(block_.get(), kBand + offset_ * int64_t(sizeof(T)), what);
    tell_checkers(end, kBand, what);
  }

  int64_t size_, offset_;
  Block block_;
};

// Scratch of an op, mostly a library's workspace of many megabytes: bytes full of NaN between guard bands,
// `offset` bytes from alignment, in memory that the program takes once. One at a time.
class DeviceScratch {
 public:
  explicit DeviceScratch(int64_t bytes, int64_t offset = 0);
  ~DeviceScratch();
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;
  View<std::byte> view() const { return {data_, {bytes_}}; }
  // After everything enqueued; fails the test if a band was written.
  void check_bands() const;

 private:
  std::byte* data_;
  int64_t bytes_;
};

}  // namespace vqlab::testing
