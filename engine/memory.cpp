#include "memory.hpp"

#include "kernels/core/annotate.hpp"

namespace vqlab {
namespace {
constexpr int64_t kPartAlignment = 256;
}  // namespace

int64_t Slab::reserve(int64_t bytes) {
  const int64_t offset = used_;
  used_ += (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
  VQ_REQUIRE(!block_ || used_ <= allocated_,
             "slab '{}': the second pass takes more than was measured ({} bytes)", name_, allocated_);
  if (block_ && bytes > 0)
    name_memory(block_.get() + offset, bytes, fmt::format("{} +{}", name_, offset).c_str());
  return offset;
}

void Slab::allocate(const Runtime& runtime) {
  VQ_REQUIRE(!block_, "slab '{}' is allocated twice", name_);
  allocated_ = used_;
  block_ = runtime.allocate(allocated_, kind_, name_);
  used_ = 0;
}

std::string format_bytes(int64_t bytes) {
  if (bytes >= int64_t(1) << 30) return fmt::format("{:.2f} GiB", double(bytes) / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", double(bytes) / (1 << 20));
  return fmt::format("{:.1f} KiB", double(bytes) / 1024.0);
}

}  // namespace vqlab
