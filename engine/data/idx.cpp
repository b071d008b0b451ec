#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>

#include "image_set.hpp"
#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

constexpr int64_t kChunk = 1 << 20;
constexpr int64_t kFreeReserve = int64_t(64) << 20;  // bytes that any header may make us reserve
constexpr int64_t kMaxDeflateRatio = 1032;           // bytes out of one byte in (zlib, technical details)
constexpr uint8_t kUnsignedByte = 0x08;
constexpr const char* kDamaged = "download the file again, or set data.path to another copy";

struct CloseGzip {
  void operator()(gzFile_s* file) const { gzclose(file); }
};

// An IDX file, plain or in gzip format: zlib tells them apart by the first two bytes.
class IdxFile {
 public:
  explicit IdxFile(std::string path) : path_(std::move(path)), file_(gzopen(path_.c_str(), "rb")) {
    if (!file_) fail(fmt::format("cannot read: {}", std::strerror(errno)));
    std::error_code ignored;
    bytes_on_disk_ = int64_t(std::filesystem::file_size(path_, ignored));
    gzbuffer(file_.get(), 256 << 10);
    read_header();
  }

  const std::vector<int64_t>& shape() const { return shape_; }
  [[noreturn]] void fail(const std::string& what, const char* hint = kDamaged) const {
    throw Error(ErrorKind::data, what, hint, path_);
  }

  // The bytes behind the header, exactly as many as its shape says.
  std::vector<uint8_t> read_data() {
    int64_t total = 1;
    for (const int64_t d : shape_)
      if (__builtin_mul_overflow(total, d, &total) || total > kMaxSetBytes)
        fail(fmt::format("the header promises more than {} GiB", kMaxSetBytes >> 30));
    if (total > bytes_on_disk_ * (gzdirect(file_.get()) ? 1 : kMaxDeflateRatio))
      fail(fmt::format("truncated: the header promises {} bytes, the file has {}", total, bytes_on_disk_));
    // Beyond the reserve the memory grows with what has been unpacked: a header alone cannot claim it.
    std::vector<uint8_t> data;
    data.reserve(size_t(std::min(total, std::max(kFreeReserve, 4 * bytes_on_disk_))));
    while (int64_t(data.size()) < total) {
      const size_t old_size = data.size();
      data.resize(old_size + size_t(std::min(kChunk, total - int64_t(old_size))));
      read_bytes(data.data() + old_size, int64_t(data.size() - old_size));
    }
    uint8_t extra;  // reading past the end also checks the checksum of a gzip file
    if (read_some(&extra, 1) > 0) fail(fmt::format("more than the {} bytes that the header promises", total));
    return data;
  }

 private:
  int64_t read_some(uint8_t* output, int64_t size) {
    const int got = gzread(file_.get(), output, unsigned(size));
    int code = Z_OK;
    const char* message = gzerror(file_.get(), &code);
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END))
      fail(fmt::format("damaged after {} unpacked bytes: {}", position_, message));
    position_ += got;
    return got;
  }
  void read_bytes(uint8_t* output, int64_t size) {
    if (read_some(output, size) < size) fail(fmt::format("truncated: it ends after {} bytes", position_));
  }
  void read_header() {
    uint8_t magic[4];
    read_bytes(magic, 4);
    if (magic[0] != 0 || magic[1] != 0 || magic[2] != kUnsignedByte || magic[3] < 1 || magic[3] > 4)
      fail(fmt::format(
          "not an IDX file of bytes: it starts with {:02x} {:02x} {:02x} {:02x} and not 00 00 08 01 to 04",
          magic[0], magic[1], magic[2], magic[3]));
    for (int i = 0; i < magic[3]; ++i) {
      uint8_t size[4];
      read_bytes(size, 4);
      shape_.push_back(int64_t(size[0]) << 24 | size[1] << 16 | size[2] << 8 | size[3]);
    }
  }

  std::string path_;
  std::unique_ptr<gzFile_s, CloseGzip> file_;
  int64_t bytes_on_disk_ = 0, position_ = 0;
  std::vector<int64_t> shape_;
};

// The first of the names, plain or with .gz, that exists in the directory.
std::optional<std::string> find_file(const std::string& directory, const std::vector<std::string>& names) {
  for (const std::string& name : names)
    for (const char* ending : {"", ".gz"}) {
      const std::string path = directory + "/" + name + ending;
      std::error_code ignored;
      if (std::filesystem::exists(path, ignored)) return path;
    }
  return {};
}

}  // namespace

ImageSet load_idx(const std::string& directory, Split split) {
  require_data_directory(directory);
  const std::string prefix = split == Split::train ? "train" : "t10k";
  const auto image_path =
      find_file(directory, {prefix + "-images-idx3-ubyte", prefix + "-images-idx4-ubyte"});
  if (!image_path)
    throw Error(ErrorKind::data,
                fmt::format("no {}-images-idx3-ubyte, with or without .gz, in the directory", prefix),
                "set data.path to the directory that holds the IDX files", directory);

  IdxFile images(*image_path);
  const std::vector<int64_t>& shape = images.shape();
  if (shape.size() < 3) images.fail(fmt::format("{} dimensions where pictures have 3 or 4", shape.size()));
  ImageSet set;
  set.count = shape[0], set.height = shape[1], set.width = shape[2];
  set.channels = shape.size() == 4 ? shape[3] : 1;
  const char* supported = "pictures are grey or RGB, with sides of 1 to 4096 pixels";
  static_assert(kMaxImageSide == 4096);
  if (set.count < 1) images.fail("the file holds no pictures", "set data.path to another copy of the set");
  if (std::min(set.height, set.width) < 1 || std::max(set.height, set.width) > kMaxImageSide)
    images.fail(fmt::format("pictures of {} x {} pixels", set.height, set.width), supported);
  if (set.channels != 1 && set.channels != 3)
    images.fail(fmt::format("pictures of {} channels", set.channels), supported);
  set.pixels = images.read_data();

  if (const auto label_path = find_file(directory, {prefix + "-labels-idx1-ubyte"})) {
    IdxFile labels(*label_path);
    if (labels.shape().size() != 1)
      labels.fail(fmt::format("{} dimensions where labels have 1", labels.shape().size()));
    if (labels.shape()[0] != set.count)
      labels.fail(fmt::format("{} labels for {} pictures", labels.shape()[0], set.count));
    const std::vector<uint8_t> bytes = labels.read_data();
    set.labels.assign(bytes.begin(), bytes.end());
  }
  return set;
}

}  // namespace vqlab
