#include "guarded_block.hpp"

#include <algorithm>

namespace vqlab {
namespace {
constexpr std::byte kPattern{0xFF};  // NaN in float, -1 in int
}  // namespace

GuardedBlock::GuardedBlock(const Runtime& runtime, int64_t bytes, const std::string& what)
    : runtime_(runtime), bytes_(bytes), name_(what) {
  block_ = runtime.allocate(kBand + bytes_ + kBand, MemoryKind::device, what);
  const std::vector<std::byte> band(size_t(kBand), kPattern);
  for (std::byte* begin : {block_.get(), get() + bytes_})
    runtime.upload(begin, band.data(), kBand, runtime.compute());
  runtime.synchronize(runtime.compute());
}

bool GuardedBlock::is_whole() const {
  std::vector<std::byte> bands(size_t(2 * kBand));
  runtime_.download(bands.data(), block_.get(), kBand, runtime_.compute());
  runtime_.download(bands.data() + kBand, get() + bytes_, kBand, runtime_.compute());
  runtime_.synchronize(runtime_.compute());
  return std::all_of(bands.begin(), bands.end(), [](std::byte b) { return b == kPattern; });
}

}  // namespace vqlab
