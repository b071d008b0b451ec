#include "labels.hpp"

#include <algorithm>

#include "kernels/core/check.hpp"
#include "kernels/core/random.hpp"

namespace vqlab {
namespace {

void require_labels(const ImageSet& set, const std::string& where) {
  if (!set.labels.empty()) return;
  throw Error(ErrorKind::data, "recognition needs labels, and the set has none",
              "add the file of labels, or use a set that has one", where);
}

}  // namespace

int64_t count_classes(const ImageSet& set, const std::string& where) {
  require_labels(set, where);
  const auto [least, greatest] = std::minmax_element(set.labels.begin(), set.labels.end());
  if (*least == *greatest)
    throw Error(ErrorKind::data, fmt::format("all {} pictures are of class {}", set.count, *least),
                "recognition needs pictures of two classes at least", where);
  return std::max(int64_t(*greatest) + 1, int64_t(set.class_names.size()));
}

void require_classes(const ImageSet& set, int64_t classes, const std::string& where) {
  require_labels(set, where);
  const auto bad = std::find_if(set.labels.begin(), set.labels.end(),
                                [=](int32_t label) { return label < 0 || label >= classes; });
  if (bad == set.labels.end()) return;
  throw Error(ErrorKind::data,
              fmt::format("picture {} is of class {}, and training knew the classes 0 to {}",
                          bad - set.labels.begin(), *bad, classes - 1),
              "use splits of one data set", where);
}

std::vector<int64_t> draw_labelled(const std::vector<int32_t>& labels, int64_t classes, int64_t count,
                                   uint64_t seed, uint32_t draw) {
  std::vector<int64_t> wanted(size_t(classes), count / classes), places;
  for (int64_t c = 0; c < count % classes; ++c) ++wanted[size_t(c)];
  const Permutation order({.seed = seed, .step = draw, .use = RandomUse::labels}, labels.size());
  for (size_t i = 0; i < labels.size(); ++i) {
    const int64_t place = int64_t(order(i));
    if (const int32_t label = labels[size_t(place)]; label >= 0 && wanted[size_t(label)]-- > 0)
      places.push_back(place);
  }
  if (int64_t(places.size()) < count) {
    const auto short_of = std::find_if(wanted.begin(), wanted.end(), [](int64_t left) { return left > 0; });
    throw Error(
        ErrorKind::usage,
        fmt::format("{} labels, equally many of each of {} classes, are more than there are of class {}",
                    count, classes, short_of - wanted.begin()),
        "ask for fewer labels", "labels");
  }
  std::sort(places.begin(), places.end());
  return places;
}

}  // namespace vqlab
