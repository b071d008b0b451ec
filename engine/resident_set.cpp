#include "resident_set.hpp"

#include <limits>

namespace vqlab {
namespace {

int64_t bytes_on_device(const ImageRange& range) {
  const ImageSet& set = *range.set;
  const int64_t label = set.labels.empty() ? 0 : int64_t(sizeof(int32_t));
  return range.count() * (set.height * set.width * set.channels + label);
}

// What an array over the set holds for the images of the range, in their order.
template <class T>
void upload(const Runtime& runtime, const View<T>& to, const std::vector<T>& all, const ImageRange& range) {
  if (!to) return;
  const int64_t each = to.size() / range.count();
  std::vector<T> gathered;
  if (range.only != nullptr)
    for (const int64_t place : *range.only)
      gathered.insert(gathered.end(), all.begin() + place * each, all.begin() + (place + 1) * each);
  const T* from = range.only != nullptr ? gathered.data() : all.data() + range.begin * each;
  runtime.upload(to.data, from, to.bytes(), runtime.compute());
  runtime.synchronize(runtime.compute());
}

}  // namespace

Residency choose_residency(const ImageRange& range, Device device, int64_t free_bytes) {
  if (range.count() > std::numeric_limits<int32_t>::max())
    return Residency::streamed;  // as BeginStepOp counts
  const bool fits = device == Device::cpu || bytes_on_device(range) <= free_bytes / kResidentShare;
  return fits ? Residency::resident : Residency::streamed;
}

std::string describe(Residency residency, const ImageRange& range, Device device, int64_t free_bytes) {
  const std::string images = "images: " + format_bytes(bytes_on_device(range));
  if (device == Device::cpu) return images + ", read where they are";
  const std::string rule =
      fmt::format("a quarter of the {} that the model leaves free", format_bytes(free_bytes));
  return residency == Residency::resident ? images + " stay on the GPU, at most " + rule
                                          : images + " come from the host batch by batch, more than " + rule;
}

ResidentSet::ResidentSet(const Runtime& runtime, const ImageRange& range) {
  const ImageSet& set = *range.set;
  const int64_t n = range.count(), image_bytes = set.height * set.width * set.channels;
  if (runtime.device() == Device::cpu && range.only == nullptr) {
    images_ = {set.pixels.data() + range.begin * image_bytes, {n, set.height, set.width, set.channels}};
    if (!set.labels.empty()) labels_ = {set.labels.data() + range.begin, {n}};
    return;
  }
  View<uint8_t> images;
  View<int32_t> labels;
  const auto plan = [&] {
    images = slab_.take<uint8_t>({n, set.height, set.width, set.channels});
    if (!set.labels.empty()) labels = slab_.take<int32_t>({n});
  };
  plan();
  slab_.allocate(runtime);
  plan();
  upload(runtime, images, set.pixels, range);
  upload(runtime, labels, set.labels, range);
  images_ = images;
  labels_ = labels;
}

}  // namespace vqlab
