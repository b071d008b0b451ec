#include "file.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace vqlab {
namespace {

constexpr int64_t kReadChunk = 1 << 20;

[[noreturn]] void throw_errno(const std::string& action, const std::string& path, int error,
                              int64_t bytes_needed = 0) {
  const std::string what = fmt::format("cannot {}: {}", action, std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      throw Error(
          ErrorKind::resources, what,
          fmt::format("free some space or raise the limit: {} bytes were to be written", bytes_needed), path);
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      throw Error(ErrorKind::resources, what, "the system has no memory or file handles left", path);
    case EIO:
      throw Error(ErrorKind::failed, what, "the device reported an error; check the disk", path);
    default:
      throw Error(ErrorKind::usage, what, "choose a path whose directory exists and is writable", path);
  }
}

// A file descriptor that is closed at the end of its scope.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : value_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }
  // Closes now; false if the system reports a late write error.
  bool close() { return ::close(std::exchange(value_, -1)) == 0; }

 private:
  int value_;
};

// Writes everything despite short writes and signals; false with errno set on failure.
bool write_all(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) bytes.remove_prefix(size_t(written));
  }
  return true;
}

// Waits until the file is on the disk. What cannot be flushed (pipes, directories of some network file
// systems) says so by EINVAL.
bool flush(int file) {
  int result;
  while ((result = ::fsync(file)) != 0 && errno == EINTR) continue;
  return result == 0 || errno == EINVAL;
}

std::string parent_directory(const std::string& path) {
  // "ckpt/" names ckpt: its parent is not ckpt itself.
  const size_t last = path.find_last_not_of('/');
  const std::string parent = std::filesystem::path(path.substr(0, last + 1)).parent_path().string();
  return parent.empty() ? "." : parent;
}

// The CRC register is kept reflected and complemented by the caller.
uint32_t crc32c_bytewise(uint32_t crc, std::string_view bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> entries;
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0u);
      entries[i] = value;
    }
    return entries;
  }();
  for (const char c : bytes) crc = table[(crc ^ uint8_t(c)) & 0xFF] ^ crc >> 8;
  return crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) uint32_t crc32c_words(uint32_t crc, std::string_view words) {
  uint64_t value = crc;
  for (size_t i = 0; i < words.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, words.data() + i, 8);
    value = __builtin_ia32_crc32di(value, word);
  }
  return uint32_t(value);
}
#endif

}  // namespace

std::string read_file(const std::string& path, int64_t max_bytes, ErrorKind kind) {
  const auto fail = [&](const std::string& what, const std::string& hint) {
    throw Error(kind, what, hint, path);
  };
  const auto fail_errno = [&] {
    fail(fmt::format("cannot read: {}", std::strerror(errno)), "check the path and its permissions");
  };
  const auto fail_length = [&] {
    fail(fmt::format("the file is longer than {} bytes", max_bytes),
         "no valid file of this kind is so long; check the path");
  };
  const Descriptor file(path, O_RDONLY);
  struct stat status;
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) fail_errno();
  if (status.st_size > max_bytes) fail_length();

  std::string bytes;
  bytes.reserve(size_t(status.st_size) + 1);
  // Beyond the size at opening (pipes have none) the string grows by what has been read, not by a promise.
  for (;;) {
    const size_t old_size = bytes.size();
    const size_t room = bytes.capacity() - old_size;
    const size_t wanted = std::min(size_t(kReadChunk), room ? room : size_t(kReadChunk));
    bytes.resize(old_size + wanted);
    const ssize_t got = ::read(file.get(), bytes.data() + old_size, wanted);
    bytes.resize(old_size + size_t(std::max<ssize_t>(got, 0)));
    if (got == 0) return bytes;
    if (got < 0 && errno != EINTR) fail_errno();
    if (int64_t(bytes.size()) > max_bytes) fail_length();
  }
}

namespace {

void write_whole(const std::string& path, std::string_view bytes, bool durably) {
  Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.get() < 0) throw_errno("create", path, errno, int64_t(bytes.size()));
  struct stat status;
  const bool is_device = ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode);
  if (write_all(file.get(), bytes) && (!durably || flush(file.get())) && file.close()) return;
  const int error = errno;
  if (!is_device) ::unlink(path.c_str());
  throw_errno("write", path, error, int64_t(bytes.size()));
}

}  // namespace

void write_file(const std::string& path, std::string_view bytes) {
  write_whole(path, bytes, /*durably=*/false);
}
void write_file_durably(const std::string& path, std::string_view bytes) {
  write_whole(path, bytes, /*durably=*/true);
}

void rename_durably(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) throw_errno("rename to " + to, from, errno);
  fsync_directory(parent_directory(to));
}

void fsync_directory(const std::string& path) {
  Descriptor directory(path, O_RDONLY | O_DIRECTORY);
  if (directory.get() < 0) throw_errno("open", path, errno);
  if (!flush(directory.get())) throw_errno("flush", path, errno);
}

void replace_symlink(const std::string& target, const std::string& link_path) {
  const std::string temporary = fmt::format("{}.tmp-{}", link_path, ::getpid());
  ::unlink(temporary.c_str());  // what a killed process of the same id left
  if (::symlink(target.c_str(), temporary.c_str()) != 0) throw_errno("create link", temporary, errno);
  if (std::rename(temporary.c_str(), link_path.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary.c_str());
    throw_errno("replace link", link_path, error);
  }
  fsync_directory(parent_directory(link_path));
}

AppendFile::AppendFile(std::string path, int64_t keep_bytes) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file_ < 0) throw_errno("open", path_, errno);
  try {
    struct stat status;
    if (::fstat(file_, &status) != 0) throw_errno("open", path_, errno);
    size_ = keep_bytes < 0 ? status.st_size : keep_bytes;
    if (status.st_size < size_)
      throw Error(ErrorKind::data,
                  fmt::format("the file has {} bytes where {} were written", status.st_size, size_),
                  "it was cut by another program; restore it, or start a new run", path_);
    if (status.st_size > size_ && ::ftruncate(file_, size_) != 0) throw_errno("shorten", path_, errno);
  } catch (...) {
    ::close(file_);
    throw;
  }
}

AppendFile::~AppendFile() { ::close(file_); }

void AppendFile::write_line(std::string_view line) {
  const std::string text = std::string(line) + '\n';
  if (!write_all(file_, text)) {
    const int error = errno;
    // The write error is the one to report; a half line that stays is cut off at the next opening.
    [[maybe_unused]] const int ignored = ::ftruncate(file_, size_);
    throw_errno("write", path_, error, int64_t(text.size()));
  }
  size_ += int64_t(text.size());
}

void AppendFile::sync() {
  if (!flush(file_)) throw_errno("flush", path_, errno);
}

std::string sha256_hex(std::string_view bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned length = 0;
  const int ok = EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr);
  VQ_REQUIRE(ok == 1 && length == 32, "sha256: OpenSSL gave no digest");
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string xxh3_hex(std::string_view bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("sse4.2")) {
    const size_t whole = bytes.size() / 8 * 8;
    crc = crc32c_words(crc, bytes.substr(0, whole));
    bytes.remove_prefix(whole);
  }
#endif
  return ~crc32c_bytewise(crc, bytes);
}

}  // namespace vqlab
