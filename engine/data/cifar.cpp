#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/io/file.hpp"
#include "image_set.hpp"
#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

constexpr int64_t kSide = 32, kPlane = kSide * kSide, kChannels = 3, kClasses = 10;
constexpr int64_t kRecord = 1 + kChannels * kPlane;  // label, then the planes R, G, B
constexpr int64_t kRecordsPerRead = 256;
constexpr int64_t kMaxMetaBytes = 4096;

[[noreturn]] void fail(const std::string& what, const std::string& where) {
  throw Error(ErrorKind::data, what, "use the files of the binary version of CIFAR-10, as downloaded", where);
}

std::vector<std::string> find_batches(const std::string& directory, Split split) {
  std::vector<std::string> names = {"test_batch.bin"};
  if (split == Split::train)
    names = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
             "data_batch_5.bin"};
  std::vector<std::string> found;
  for (const std::string& name : names) {
    std::error_code ignored;
    if (std::filesystem::exists(directory + "/" + name, ignored)) found.push_back(directory + "/" + name);
  }
  if (found.empty())
    throw Error(ErrorKind::data, fmt::format("no {} in the directory", names.front()),
                "set data.path to the directory cifar-10-batches-bin of the binary version", directory);
  return found;
}

// Records of a file, from its size.
int64_t count_records(const std::string& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) fail("cannot read: " + error.message(), path);
  if (size == 0) fail("the file holds no pictures", path);
  if (size > uintmax_t(kMaxSetBytes))
    fail(fmt::format("the file is longer than {} GiB", kMaxSetBytes >> 30), path);
  if (size % kRecord != 0)
    fail(fmt::format("{} bytes are not a multiple of {}, the size of a record", size, kRecord), path);
  return int64_t(size) / kRecord;
}

void read_batch(const std::string& path, int64_t count, uint8_t* pixels, int32_t* labels) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> records(size_t(kRecord * kRecordsPerRead));
  for (int64_t done = 0; done < count; done += kRecordsPerRead) {
    const int64_t now = std::min(kRecordsPerRead, count - done);
    if (!file.read(reinterpret_cast<char*>(records.data()), now * kRecord))
      fail(fmt::format("cannot read beyond byte {}", done * kRecord), path);
    for (int64_t i = 0; i < now; ++i) {
      const uint8_t* record = records.data() + i * kRecord;
      if (record[0] >= kClasses)
        fail(fmt::format("label {} at byte {} is not 0 to 9", record[0], (done + i) * kRecord), path);
      *labels++ = record[0];
      for (int64_t p = 0; p < kPlane; ++p)
        for (int64_t c = 0; c < kChannels; ++c) *pixels++ = record[1 + c * kPlane + p];
    }
  }
}

std::vector<std::string> read_class_names(const std::string& directory) {
  const std::string path = directory + "/batches.meta.txt";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  std::istringstream text(read_file(path, kMaxMetaBytes));
  std::vector<std::string> names;
  for (std::string name; std::getline(text, name);)
    if (!name.empty()) names.push_back(name);
  if (int64_t(names.size()) != kClasses)
    fail(fmt::format("{} class names and not {}", names.size(), kClasses), path);
  return names;
}

}  // namespace

ImageSet load_cifar(const std::string& directory, Split split) {
  require_data_directory(directory);
  ImageSet set;
  set.height = set.width = kSide, set.channels = kChannels;
  set.class_names = read_class_names(directory);
  const std::vector<std::string> paths = find_batches(directory, split);
  std::vector<int64_t> counts;
  for (const std::string& path : paths) {
    counts.push_back(count_records(path));
    set.count += counts.back();
  }
  set.pixels.resize(size_t(set.count * kChannels * kPlane));
  set.labels.resize(size_t(set.count));
  int64_t first = 0;
  for (size_t i = 0; i < paths.size(); ++i) {
    read_batch(paths[i], counts[i], set.pixels.data() + first * kChannels * kPlane,
               set.labels.data() + first);
    first += counts[i];
  }
  return set;
}

}  // namespace vqlab
