// Images of a training run that stay on the device, as bytes: a step then copies none.
#pragma once

#include <string>

#include "feeder.hpp"
#include "memory.hpp"

namespace vqlab {

// Where a training step has its images from: the set on the device, or batches that come over from the host.
enum class Residency { resident, streamed };

// A set stays on a GPU if it takes at most a quarter of the memory that the model leaves free.
inline constexpr int64_t kResidentShare = 4;

// For a device with `free_bytes` beside the model. On the CPU the images are in its memory anyway.
Residency choose_residency(const ImageRange& range, Device device, int64_t free_bytes);
// The choice in one line for people.
std::string describe(Residency residency, const ImageRange& range, Device device, int64_t free_bytes);

class ResidentSet {
 public:
  // Copies the range's images and labels, in the range's order, to a GPU; on the CPU they are used where they
  // are, so the set must outlive this, unless the range is one of some places. Throws Error(resources).
  ResidentSet(const Runtime& runtime, const ImageRange& range);

  View<const uint8_t> images() const { return images_; }  // (n, H, W, C), on the device
  View<const int32_t> labels() const { return labels_; }  // (n), or absent: the set has none

 private:
  Slab slab_{"training images"};
  View<const uint8_t> images_;
  View<const int32_t> labels_;
};

}  // namespace vqlab
