#include "device_testing.hpp"

#include <algorithm>

namespace vqlab::testing {
namespace {

constexpr int64_t kAlignment = 256;  // and the least bytes of a band

// What all scratch lies in, one after another. The last one ends where the memory does, but for a band, so
// that what goes beyond that meets nobody's memory.
struct ScratchMemory {
  Block block;
  int64_t bytes = 0;
  bool taken = false;
  std::byte* end() const { return block.get() + bytes; }
};

ScratchMemory& scratch_memory() {
  device_runtime();  // which is to live longer
  static ScratchMemory memory;
  return memory;
}

// In pieces that fit a cache, which are copied more than once on their way.
void fill_with_nan(std::byte* begin, const std::byte* end) {
  static const std::vector<unsigned char> piece(size_t(1) << 18, 0xFF);
  for (; begin < end; begin += piece.size())
    device_runtime().upload(begin, piece.data(), std::min<int64_t>(int64_t(piece.size()), end - begin),
                            device_stream());
}

}  // namespace

const Runtime& device_runtime() {
  static const Runtime runtime("cuda", 0);
  return runtime;
}

DeviceScratch::DeviceScratch(int64_t bytes, int64_t offset) : bytes_(bytes) {
  ScratchMemory& memory = scratch_memory();
  REQUIRE(!memory.taken);
  const int64_t needed = (bytes + offset + 3 * kAlignment - 1) / kAlignment * kAlignment;
  if (memory.bytes < needed) {
    memory.block.reset();
    memory.block = device_runtime().allocate(needed, MemoryKind::device, "test scratch");
    memory.bytes = needed;
    tell_checkers(memory.block.get(), needed, Bytes::nobodys);
  }
  std::byte* const band = memory.end() - needed;
  data_ = band + kAlignment + offset;
  tell_checkers(band, memory.end() - band, Bytes::defined);
  fill_with_nan(band, memory.end());
  synchronize();
  tell_checkers(band, data_ - band, Bytes::nobodys);
  tell_checkers(data_, bytes_, Bytes::undefined);
  tell_checkers(data_ + bytes_, memory.end() - (data_ + bytes_), Bytes::nobodys);
  memory.taken = true;
}

DeviceScratch::~DeviceScratch() {
  tell_checkers(data_, bytes_, Bytes::nobodys);
  scratch_memory().taken = false;
}

void DeviceScratch::check_bands() const {
  const std::byte* const end = scratch_memory().end();
  for (const auto& [begin, size] : {std::pair<const std::byte*, int64_t>{data_ - kAlignment, kAlignment},
                                    {data_ + bytes_, end - (data_ + bytes_)}}) {
    tell_checkers(begin, size, Bytes::defined);
    const std::vector<std::byte> band = to_host(View<const std::byte>(begin, {size}), device_runtime());
    tell_checkers(begin, size, Bytes::nobodys);
    const auto changed = std::ranges::find_if(band, [](std::byte x) { return x != std::byte{0xFF}; });
    if (changed != band.end())
      FAIL("guard band overwritten at byte " << begin - data_ + (changed - band.begin()) << " of scratch of "
                                             << bytes_ << " bytes");
  }
}

}  // namespace vqlab::testing
