// Rooms 1 to 3 of a step whose images come from the host: which pictures, their bytes in pinned memory, their
// bytes on the device.
#pragma once

#include <array>
#include <vector>

#include "data/image_set.hpp"
#include "kernels/core/random.hpp"
#include "memory.hpp"
#include "model.hpp"

namespace vqlab {

// A contiguous part of an image set, or some places of it.
struct ImageRange {
  const ImageSet* set;
  int64_t begin, end;                          // images [begin, end)
  const std::vector<int64_t>* only = nullptr;  // of these the given ones; null: all
  int64_t count() const { return only ? int64_t(only->size()) : end - begin; }
  int64_t place(int64_t i) const { return only ? (*only)[size_t(i)] : begin + i; }
};

class Feeder {
 public:
  Feeder(const Runtime& runtime, int64_t batch, const ImageSet& set);

  // Training: places [first, first + batch) of the epoch's order, a permutation that depends on (seed, epoch)
  // alone.
  void pick(const ImageRange& range, uint64_t seed, int64_t epoch, int64_t first);
  // Evaluation: images [first, first + batch) of the range; past its end the last image is repeated.
  void pick_in_order(const ImageRange& range, int64_t first);

  // Copies the picked images and their labels, -1 where the set has none, into the next pinned slot, once the
  // upload of two calls ago is done.
  void fill(const ImageSet& set);
  // From the slot just filled to the model's images(), on the copy stream: it starts as soon as the model has
  // read the images before, and the compute stream waits for its end. The classifier's labels() follow on the
  // compute stream, since a step reads them to its end.
  void upload(Model& model);

 private:
  const Runtime& runtime_;
  const int64_t image_bytes_;
  std::vector<int64_t> picked_;
  Slab slab_{"pinned batches", MemoryKind::pinned};
  struct Slot {
    View<uint8_t> images;
    View<int32_t> labels;
    Event uploaded;  // images and labels
  };
  std::array<Slot, 2> slots_;  // one is filled while the other is being copied
  size_t slot_ = 0;
};

}  // namespace vqlab
