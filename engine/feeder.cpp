#include "feeder.hpp"

#include <cstring>

#include "kernels/nn/begin_step.hpp"

namespace vqlab {

Feeder::Feeder(const Runtime& runtime, int64_t batch, const ImageSet& set)
    : runtime_(runtime), image_bytes_(set.height * set.width * set.channels), picked_(size_t(batch)) {
  const auto plan = [&] {
    for (Slot& slot : slots_) {
      slot.images = slab_.take<uint8_t>({batch, set.height, set.width, set.channels});
      slot.labels = slab_.take<int32_t>({batch});
    }
  };
  plan();
  slab_.allocate(runtime);
  plan();
  for (Slot& slot : slots_) slot.uploaded = Event(runtime);
}

void Feeder::pick(const ImageRange& range, uint64_t seed, int64_t epoch, int64_t first) {
  const Permutation order = epoch_order(seed, epoch, range.count());
  for (size_t i = 0; i < picked_.size(); ++i) picked_[i] = range.place(int64_t(order(uint64_t(first) + i)));
}

void Feeder::pick_in_order(const ImageRange& range, int64_t first) {
  for (size_t i = 0; i < picked_.size(); ++i)
    picked_[i] = range.place(std::min(first + int64_t(i), range.count() - 1));
}

void Feeder::fill(const ImageSet& set) {
  slot_ = 1 - slot_;
  slots_[slot_].uploaded.wait();
  uint8_t* images = slots_[slot_].images.data;
  int32_t* labels = slots_[slot_].labels.data;
  for (size_t i = 0; i < picked_.size(); ++i) {
    std::memcpy(images + int64_t(i) * image_bytes_, set.pixels.data() + picked_[i] * image_bytes_,
                size_t(image_bytes_));
    labels[i] = set.labels.empty() ? -1 : set.labels[size_t(picked_[i])];
  }
}

void Feeder::upload(Model& model) {
  Slot& slot = slots_[slot_];
  model.images_read().hold(runtime_.copy());
  runtime_.upload(model.images().data, slot.images.data, slot.images.bytes(), runtime_.copy());
  slot.uploaded.record(runtime_.copy());
  slot.uploaded.hold(runtime_.compute());
  if (const Classifier* classifier = model.classifier()) {
    runtime_.upload(classifier->labels().data, slot.labels.data, slot.labels.bytes(), runtime_.compute());
    slot.uploaded.record(runtime_.compute());  // which has waited for the images
  }
}

}  // namespace vqlab
