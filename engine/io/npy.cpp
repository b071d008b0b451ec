#include "npy.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string_view>

#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are copied as they stand in the file");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kAlignment = 64;       // where the data begins
constexpr size_t kMaxHeader = 1 << 16;  // bytes
constexpr size_t kMaxNpyRank = 4;

struct TypeRow {
  NpyType type;
  std::string_view descr;
  int64_t bytes;
};
constexpr TypeRow kTypes[] = {
    {NpyType::u8, "|u1", 1}, {NpyType::u16, "<u2", 2}, {NpyType::u32, "<u4", 4}, {NpyType::f32, "<f4", 4}};

const TypeRow& row_of(NpyType type) { return kTypes[size_t(type)]; }

std::optional<int64_t> byte_count(const std::vector<int64_t>& shape, NpyType type) {
  int64_t bytes = row_of(type).bytes;
  for (const int64_t d : shape)
    if (d < 0 || __builtin_mul_overflow(bytes, d, &bytes)) return {};
  return bytes;
}

[[noreturn]] void fail(const std::string& what, const std::string& where) {
  throw Error(ErrorKind::data, what,
              "write the array as uint8, uint16, uint32 or float32 in C order with numpy.save, or copy the "
              "file again",
              where);
}

// Reads the one Python literal that the format has: a dict of descr, fortran_order and shape.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  struct Header {
    std::string_view descr;
    bool fortran_order = false;
    std::vector<int64_t> shape;
  };
  Header parse() {
    Header header;
    bool seen[3] = {};
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      const int which = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      if (which < 0 || seen[which]) fail_here(fmt::format("key '{}' is unknown or occurs twice", key));
      seen[which] = true;
      if (which == 0) header.descr = string();
      if (which == 1) header.fortran_order = boolean();
      if (which == 2) header.shape = tuple();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) fail_here("text behind the closing brace");
    if (!seen[0] || !seen[1] || !seen[2]) fail_here("descr, fortran_order or shape is missing");
    return header;
  }

 private:
  [[noreturn]] void fail_here(const std::string& what) const {
    fail(fmt::format("invalid header at its byte {}: {}", at_, what), where_);
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char c) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail_here(fmt::format("expected '{}'", c));
  }
  // Without escapes: none of the valid strings has one.
  std::string_view string() {
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'') expect('\'');
    const size_t begin = at_, end = text_.find(quote, begin);
    if (end == text_.npos) fail_here("a string without end");
    at_ = end + 1;
    return text_.substr(begin, end - begin);
  }
  bool boolean() {
    skip_spaces();
    for (const std::string_view word : {"False", "True"}) {
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return word == "True";
    }
    fail_here("expected True or False");
  }
  int64_t integer() {
    skip_spaces();
    const size_t begin = at_;
    int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      if (__builtin_mul_overflow(value, 10, &value) ||
          __builtin_add_overflow(value, text_[at_] - '0', &value))
        fail_here("a dimension beyond 2^63");
    if (at_ == begin) fail_here("expected a dimension");
    return value;
  }
  // (), (3,) or (3, 4) with an optional last comma; (3) is not a tuple.
  std::vector<int64_t> tuple() {
    std::vector<int64_t> values;
    expect('(');
    while (!accept(')')) {
      if (values.size() == kMaxNpyRank) fail_here(fmt::format("more than {} dimensions", kMaxNpyRank));
      values.push_back(integer());
      if (accept(',')) continue;
      if (values.size() == 1) expect(',');
      expect(')');
      break;
    }
    return values;
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

// The text of the header, behind which the data begins.
std::string_view header_text(std::string_view file, const std::string& where) {
  if (!file.starts_with(kMagic)) fail("not a .npy file: it does not start with \\x93NUMPY", where);
  const uint8_t major = file.size() > kMagic.size() ? uint8_t(file[kMagic.size()]) : 0;
  if (major < 1 || major > 3) fail(fmt::format("format version {} is not 1, 2 or 3", major), where);
  const size_t length_at = kMagic.size() + 2, length_bytes = major == 1 ? 2 : 4;
  const size_t begin = length_at + length_bytes;
  if (file.size() < begin)
    fail(fmt::format("the file ends after {} bytes, in its header", file.size()), where);
  uint32_t length = 0;
  std::memcpy(&length, file.data() + length_at, length_bytes);
  if (length > kMaxHeader) fail(fmt::format("a header of {} bytes, more than {}", length, kMaxHeader), where);
  if (length > file.size() - begin)
    fail(fmt::format("the file ends after {} bytes, in its header", file.size()), where);
  return file.substr(begin, length);
}

}  // namespace

std::string encode_npy(NpyType type, const std::vector<int64_t>& shape, const void* data) {
  const std::optional<int64_t> bytes = byte_count(shape, type);
  VQ_REQUIRE(!shape.empty() && shape.size() <= kMaxNpyRank && bytes && (data || *bytes == 0),
             "npy: shape {} is not of rank 1 to 4, or has no data", shape);
  // A tuple of one element ends in a comma.
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}",
                                   row_of(type).descr, fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  const size_t prefix = kMagic.size() + 4;
  header.append((kAlignment - (prefix + header.size() + 1) % kAlignment) % kAlignment, ' ');
  header += '\n';
  std::string file(kMagic);
  file += {'\1', '\0', char(header.size() & 0xFF), char(header.size() >> 8)};
  file += header;
  if (*bytes > 0) file.append(static_cast<const char*>(data), size_t(*bytes));
  return file;
}

NpyArray::NpyArray(std::string bytes, std::string where) : file_(std::move(bytes)), where_(std::move(where)) {
  const std::string_view text = header_text(file_, where_);
  const HeaderParser::Header header = HeaderParser(text, where_).parse();
  const auto* row =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](auto& r) { return r.descr == header.descr; });
  if (row == std::end(kTypes))
    fail(fmt::format("element type '{}' is not one of |u1, <u2, <u4, <f4", header.descr), where_);
  if (header.fortran_order) fail("the array is in Fortran order", where_);
  type_ = row->type;
  shape_ = header.shape;
  data_begin_ = size_t(text.data() + text.size() - file_.data());
  const std::optional<int64_t> wanted = byte_count(shape_, type_);
  const int64_t present = int64_t(file_.size() - data_begin_);
  if (!wanted || present != *wanted)
    fail(fmt::format("{} bytes of data for shape {} of {}", present, shape_, header.descr), where_);
}

int64_t NpyArray::size() const { return int64_t(file_.size() - data_begin_) / row_of(type_).bytes; }

std::vector<int32_t> NpyArray::codes() const {
  if (type_ == NpyType::f32) fail("the array holds floats where codes were expected", where_);
  const int64_t width = row_of(type_).bytes;
  std::vector<int32_t> result(size_t(this->size()));
  for (size_t i = 0; i < result.size(); ++i) {
    uint32_t code = 0;
    std::memcpy(&code, file_.data() + data_begin_ + i * size_t(width), size_t(width));
    if (code > uint32_t(INT32_MAX)) fail(fmt::format("code {} at {} is beyond 2^31 - 1", code, i), where_);
    result[i] = int32_t(code);
  }
  return result;
}

void NpyArray::require(NpyType type) const {
  if (type != type_)
    fail(fmt::format("the elements are {} and not {}", row_of(type_).descr, row_of(type).descr), where_);
}

void NpyArray::copy_bytes(void* output) const {
  if (file_.size() > data_begin_) std::memcpy(output, file_.data() + data_begin_, file_.size() - data_begin_);
}

}  // namespace vqlab
