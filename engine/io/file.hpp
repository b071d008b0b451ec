// Whole files in memory, files that survive a crash, and hashes of bytes. Bytes travel as std::string.
// Every error names its path in `where`. Writing throws Error(resources) when the disk, a quota or a file
// size limit is exhausted, Error(usage) when the path cannot be written, Error(failed) on a device error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/core/check.hpp"

namespace vqlab {

// The content of a file (or pipe) of at most `max_bytes` bytes. Throws Error(kind) if it is missing,
// unreadable, a directory or longer.
std::string read_file(const std::string& path, int64_t max_bytes, ErrorKind kind = ErrorKind::data);

// Creates or overwrites a file. A failure removes it.
void write_file(const std::string& path, std::string_view bytes);

// The same, and returns when its bytes are on the disk. A crash leaves it absent or
// damaged, a failure removes it: for whole-or-nothing write under a temporary name or directory, then
// rename_durably.
void write_file_durably(const std::string& path, std::string_view bytes);

// Renames a file or directory, replacing a file or an empty directory, and returns when the parent directory
// of `to` is on the disk. Any instant shows the old or the new state.
void rename_durably(const std::string& from, const std::string& to);

// Makes the names inside a directory (files created, renamed or removed) durable.
void fsync_directory(const std::string& path);

// Lets the symbolic link `link_path` point at `target` (text, relative to the link's directory), durably. Any
// instant shows the old or the new link.
void replace_symlink(const std::string& target, const std::string& link_path);

// A text file that only grows, line by line. One writer.
class AppendFile {
 public:
  // Opens or creates the file and cuts it to its first `keep_bytes` bytes (-1 = all): what a killed run wrote
  // after its last checkpoint goes away. Throws Error(data) if the file is shorter than that.
  explicit AppendFile(std::string path, int64_t keep_bytes = -1);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Appends `line` and a newline. A line that cannot be written whole leaves no part of itself.
  void write_line(std::string_view line);
  // Returns when all lines are on the disk.
  void sync();
  int64_t size() const { return size_; }  // bytes

 private:
  std::string path_;
  int file_;
  int64_t size_ = 0;
};

// 64 lower-case hex digits (FIPS 180-4).
std::string sha256_hex(std::string_view bytes);
// XXH3, 64 bits, seed 0, as 16 lower-case hex digits.
std::string xxh3_hex(std::string_view bytes);
// CRC-32C (Castagnoli, RFC 3720 appendix B.4).
uint32_t crc32c(std::string_view bytes);

}  // namespace vqlab
