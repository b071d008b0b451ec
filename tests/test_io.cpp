// JSON, files and hashes.
#include <rapidcheck.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <limits>

#include "engine/io/file.hpp"
#include "engine/io/json.hpp"
#include "expect_error.hpp"

using namespace vqlab;
using namespace vqlab::testing;

namespace {

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// A range-for over the items or members of a temporary would read freed memory: it must not compile.
template <class T>
concept HasItems = requires(T json) {
  static_cast<T>(json).items();
};
template <class T>
concept HasMembers = requires(T json) {
  static_cast<T>(json).members();
};
static_assert(HasItems<Json&> && HasItems<const Json&> && !HasItems<Json&&> && !HasItems<const Json&&>);
static_assert(HasMembers<Json&> && HasMembers<const Json&> && !HasMembers<Json&&> &&
              !HasMembers<const Json&&>);

bool same(const Json& a, const Json& b) {
  if (a.is_array() && b.is_array())
    return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(), same);
  if (a.is_object() && b.is_object())
    return std::equal(
        a.members().begin(), a.members().end(), b.members().begin(), b.members().end(),
        [](const auto& x, const auto& y) { return x.first == y.first && same(x.second, y.second); });
  if (a.is_string() && b.is_string()) return a.as_string() == b.as_string();
  if (a.is_bool() && b.is_bool()) return a.as_bool() == b.as_bool();
  if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
  if (a.is_integer() || b.is_integer()) return false;  // an integer must not come back as a double
  if (a.is_number() && b.is_number()) return same_bits(a.as_number(), b.as_number());
  return a.is_null() && b.is_null();
}

std::string any_string() {
  static const std::vector<std::string> pieces = {"a",  "Z",    "\"",   "\\", "/", "\n",
                                                  "\t", "\x01", "\x7f", "é",  "€", "😀"};
  std::string text;
  for (int i = *rc::gen::inRange(0, 6); i > 0; --i) text += *rc::gen::elementOf(pieces);
  return text;
}

double any_finite() {
  const uint64_t bits = *rc::gen::arbitrary<uint64_t>();
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return std::isfinite(value) ? value : double(bits);
}

Json any_json(int depth) {
  switch (*rc::gen::inRange(0, depth > 0 ? 7 : 5)) {
    case 0:
      return Json();
    case 1:
      return Json(*rc::gen::arbitrary<bool>());
    case 2:
      return Json(*rc::gen::arbitrary<int64_t>());
    case 3:
      return Json(any_finite());
    case 4:
      return Json(any_string());
    case 5: {
      Json list = Json::array();
      for (int i = *rc::gen::inRange(0, 4); i > 0; --i) list.push_back(any_json(depth - 1));
      return list;
    }
    default: {
      Json object = Json::object();
      for (int i = *rc::gen::inRange(0, 4); i > 0; --i) object[any_string()] = any_json(depth - 1);
      return object;
    }
  }
}

std::string read_back(const std::string& path) { return read_file(path, 1 << 20); }

// Lets files grow to `bytes` only, as a full disk would, until the object dies.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &old_);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_;
  void (*old_handler_)(int);
};

}  // namespace

TEST_CASE("json: any value survives writing and reading", "[unit]") {
  REQUIRE(rc::check("round trip", [] {
    const Json value = any_json(4);
    RC_ASSERT(same(parse_json(value.dump(), "text"), value));
    RC_ASSERT(same(parse_json(value.dump(2), "text"), value));
  }));
}

TEST_CASE("json: numbers keep their type and value", "[unit]") {
  CHECK(Json(1.0).dump() == "1.0");
  CHECK(Json(-0.0).dump() == "-0.0");
  CHECK(Json(0.1).dump() == "0.1");
  CHECK(Json(1e300).dump() == "1e+300");
  CHECK(Json(1).dump() == "1");
  CHECK(Json(std::numeric_limits<double>::quiet_NaN()).dump() == "null");
  CHECK(Json(-std::numeric_limits<double>::infinity()).dump() == "null");
  CHECK(parse_json("9223372036854775807", "text").as_integer() == INT64_MAX);
  CHECK(parse_json("-9223372036854775808", "text").as_integer() == INT64_MIN);
  CHECK(same_bits(parse_json("2.2250738585072011e-308", "text").as_number(), 2.2250738585072011e-308));
  CHECK(parse_json("3", "text").as_number() == 3.0);
}

TEST_CASE("json: layout of the written text", "[unit]") {
  Json value = Json::object();
  value["b"] = 1;
  value["a"]["list"].push_back(true);
  value["a"]["list"].push_back("x\ny\x02");
  value["empty"] = Json::array();
  value["b"] = 2;
  CHECK(value.dump() == R"({"b": 2, "a": {"list": [true, "x\ny\u0002"]}, "empty": []})");
  CHECK(value["a"].dump(2) == "{\n  \"list\": [\n    true,\n    \"x\\ny\\u0002\"\n  ]\n}");
}

TEST_CASE("json: invalid UTF-8 is replaced when written", "[unit]") {
  const std::string mark = "\xEF\xBF\xBD";
  // A lone byte, a sequence cut short, overlong zeros, a surrogate, a value beyond U+10FFFF.
  CHECK(Json("a\xFFz").dump() == "\"a" + mark + "z\"");
  CHECK(Json("\xE2\x82").dump() == "\"" + mark + mark + "\"");
  CHECK(Json("\xC0\x80").dump() == "\"" + mark + mark + "\"");
  CHECK(Json("\xE0\x80\x80").dump() == "\"" + mark + mark + mark + "\"");
  CHECK(Json("\xF0\x80\x80\x80").dump() == "\"" + mark + mark + mark + mark + "\"");
  CHECK(Json("\xED\xA0\x80").dump() == "\"" + mark + mark + mark + "\"");
  CHECK(Json("\xF4\x90\x80\x80").dump() == "\"" + mark + mark + mark + mark + "\"");
  CHECK(Json("\xF4\x8F\xBF\xBF").dump() == "\"\xF4\x8F\xBF\xBF\"");
  REQUIRE(rc::check("any bytes give a text that can be read", [](const std::string& bytes) {
    RC_ASSERT(parse_json(Json(bytes).dump(), "text").is_string());
  }));
}

TEST_CASE("json: access to a value of another type", "[bad-input]") {
  const Json value = parse_json(R"({"n": 1, "x": 1.5, "s": "text", "l": []})", "text");
  require_error(ErrorKind::data, "expected a string but found an integer", "JSON",
                [&] { value.at("n").as_string(); });
  require_error(ErrorKind::data, "expected an integer but found a number", "JSON",
                [&] { value.at("x").as_integer(); });
  require_error(ErrorKind::data, "expected a number but found a string", "JSON",
                [&] { value.at("s").as_number(); });
  require_error(ErrorKind::data, "expected a boolean but found an array", "JSON",
                [&] { value.at("l").as_bool(); });
  require_error(ErrorKind::data, "expected an object but found an array", "JSON",
                [&] { value.at("l").at("k"); });
  require_error(ErrorKind::data, "expected an array but found an object", "JSON", [&] { value.items(); });
  require_error(ErrorKind::data, "key 'absent' is missing", "JSON", [&] { value.at("absent"); });
  CHECK(value.find("absent") == nullptr);
  CHECK(value.at("l").find("n") == nullptr);
}

TEST_CASE("json: malformed texts are refused with their place", "[bad-input]") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "at byte 1"},
      {"nul", "at byte 4"},
      {"[1,]", "at byte 4"},
      {"[1 2]", "at byte 4"},
      {"{\"a\":1,}", "at byte 8"},
      {"{\"a\" 1}", "at byte 6"},
      {"{1:2}", "at byte "},
      {"[1] x", "at byte 5"},
      {"'a'", "at byte 1"},
      {"01", "at byte 2"},
      {"+1", "at byte 1"},
      {"1.", "at byte 3"},
      {"[NaN]", "at byte 2"},
      {"\"open", "at byte 6"},
      {"\"tab\there\"", "at byte 5"},
      {"\"\\ud800\"", "at byte "},
      {"\"\xFF\"", "at byte 2"},
      {std::string("{}\0", 3), "at byte 3: a zero byte"},
      {"{\"a\":1,\"b\":2,\"a\":3}", "at byte 19: key 'a' occurs twice"},
      {"[{\"a\":{},\"a\":{}}]", "key 'a' occurs twice"},
      {"9223372036854775808", "outside the range of int64"},
      {"-9223372036854775809", "outside the range of int64"},
      {"123456789012345678901234567890", "outside the range of int64"},
      {"[1e999]", "number overflow"},
  };
  for (const auto& [text, what] : cases) {
    INFO("text: " << text);
    require_error(ErrorKind::data, what, "file.json", [&] { parse_json(text, "file.json"); });
  }
}

TEST_CASE("json: a text cut at any byte is refused", "[bad-input]") {
  const std::string text = R"({"a": [1, -2.5e3, "x\u00e9"], "b": {"c": null, "d": true}})";
  parse_json(text, "file.json");
  for (size_t length = 0; length < text.size(); ++length) {
    INFO("length " << length);
    REQUIRE_THROWS_AS(parse_json(text.substr(0, length), "file.json"), Error);
  }
}

TEST_CASE("json: nesting and number of values are limited", "[bad-input]") {
  const auto nested = [](int depth) {
    return std::string(size_t(depth), '[') + std::string(size_t(depth), ']');
  };
  CHECK(parse_json(nested(16), "text").is_array());
  CHECK(parse_json("[[1]]", "text", 2).is_array());
  require_error(ErrorKind::data, "nested deeper than 16", "text", [&] { parse_json(nested(17), "text"); });
  require_error(ErrorKind::data, "nested deeper than 2", "text", [&] { parse_json("[[[]]]", "text", 2); });
  require_error(ErrorKind::data, "nested deeper than 16", "text",
                [] { parse_json(std::string(1000000, '['), "text"); });
  std::string many = "[0";
  for (int i = 0; i < 1 << 20; ++i) many += ",0";
  require_error(ErrorKind::data, "more than 1048576 values", "text", [&] { parse_json(many + "]", "text"); });
}

TEST_CASE("files: bytes survive writing and reading", "[unit]") {
  const TemporaryDirectory directory;
  std::string bytes = "with a zero \0 byte";
  bytes.push_back('\0');
  write_file_durably(directory / "f", bytes);
  CHECK(read_back(directory / "f") == bytes);
  write_file_durably(directory / "f", "short");
  CHECK(read_back(directory / "f") == "short");
  write_file_durably(directory / "f", "");
  CHECK(read_back(directory / "f").empty());
  const std::string large(3 * (size_t(1) << 20) + 17, 'x');  // several read chunks
  write_file_durably(directory / "large", large);
  CHECK(read_file(directory / "large", int64_t(large.size())) == large);
  CHECK(!read_file("/proc/self/status", 1 << 16).empty());  // a file whose size reads as 0
}

TEST_CASE("files: what cannot be read", "[bad-input]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "f";
  require_error(ErrorKind::data, "No such file", path, [&] { read_file(path, 10); });
  require_error(ErrorKind::checkpoint, "No such file", path,
                [&] { read_file(path, 10, ErrorKind::checkpoint); });
  require_error(ErrorKind::data, "directory", directory.path(),
                [&] { read_file(directory.path(), 1 << 20); });
  write_file_durably(path, "0123456789");
  CHECK(read_file(path, 10).size() == 10);
  require_error(ErrorKind::data, "longer than 9 bytes", path, [&] { read_file(path, 9); });
  require_error(ErrorKind::data, "longer than 100 bytes", "/dev/zero", [] { read_file("/dev/zero", 100); });
}

TEST_CASE("files: what cannot be written", "[bad-input]") {
  const TemporaryDirectory directory;
  const std::string orphan = directory / "absent/f";
  require_error(ErrorKind::usage, "No such file", orphan, [&] { write_file_durably(orphan, "x"); });
  require_error(ErrorKind::usage, "directory", directory.path(),
                [&] { write_file_durably(directory.path(), "x"); });
  require_error(ErrorKind::resources, "No space", "/dev/full", [] { write_file_durably("/dev/full", "x"); });
  CHECK(std::filesystem::exists("/dev/full"));
  require_error(ErrorKind::usage, "No such file", orphan, [&] { fsync_directory(orphan); });
  require_error(ErrorKind::usage, "No such file", orphan, [&] { rename_durably(orphan, directory / "g"); });
  require_error(ErrorKind::usage, "No such file", orphan, [&] { AppendFile file(orphan); });
}

TEST_CASE("files: a write beyond the limit leaves nothing behind", "[bad-input]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "f", log = directory / "log";
  AppendFile file(log);
  file.write_line("123456789");
  {
    const FileSizeLimit limit(16);
    require_error(ErrorKind::resources, "File too large", path,
                  [&] { write_file_durably(path, std::string(2500000, 'x')); });
    require_error(ErrorKind::resources, "File too large", log, [&] { file.write_line("a line too long"); });
    try {
      write_file_durably(path, std::string(2500000, 'x'));
    } catch (const Error& error) {
      CHECK(error.hint().find("2500000 bytes") != std::string::npos);
    }
  }
  CHECK(!std::filesystem::exists(path));
  CHECK(file.size() == 10);
  CHECK(read_back(log) == "123456789\n");
  file.write_line("after");
  CHECK(read_back(log) == "123456789\nafter\n");
}

TEST_CASE("files: renaming replaces files and moves directories", "[unit]") {
  const TemporaryDirectory directory;
  write_file_durably(directory / "old", "old");
  write_file_durably(directory / "new", "new");
  rename_durably(directory / "new", directory / "old");
  CHECK(read_back(directory / "old") == "new");
  CHECK(!std::filesystem::exists(directory / "new"));
  std::filesystem::create_directory(directory / "d");
  write_file_durably(directory / "d/f", "inside");
  rename_durably(directory / "d", directory / "step-1/");
  CHECK(read_back(directory / "step-1/f") == "inside");
  require_error(ErrorKind::usage, "cannot rename", directory / "old",
                [&] { rename_durably(directory / "old", directory / "step-1"); });
}

TEST_CASE("files: a link is made and replaced", "[unit]") {
  const TemporaryDirectory directory;
  for (const char* target : {"step-1", "step-2"}) {
    replace_symlink(target, directory / "last");
    CHECK(std::filesystem::read_symlink(directory / "last").string() == target);
  }
  std::filesystem::create_directory(directory / "taken");
  require_error(ErrorKind::usage, "cannot replace link", directory / "taken",
                [&] { replace_symlink("step-1", directory / "taken"); });
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory.path())) ++entries;
  CHECK(entries == 2);  // no temporary link is left
}

TEST_CASE("files: a log grows by lines and is cut when it is opened again", "[unit]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "log";
  {
    AppendFile log(path);
    log.write_line("one");
    log.write_line("two");
    log.sync();
    CHECK(log.size() == 8);
  }
  {
    AppendFile log(path);
    CHECK(log.size() == 8);
    log.write_line("three");
  }
  CHECK(read_back(path) == "one\ntwo\nthree\n");
  AppendFile log(path, 4);
  log.write_line("four");
  CHECK(read_back(path) == "one\nfour\n");
  require_error(ErrorKind::data, "has 9 bytes where 100 were written", path,
                [&] { AppendFile other(path, 100); });
}

TEST_CASE("hashes: published test vectors", "[unit]") {
  // FIPS 180-4 examples.
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  // xxHash's own sanity check.
  CHECK(xxh3_hex("") == "2d06800538d394c2");
  CHECK(xxh3_hex("abc") == "78af5f94892f3950");
  // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
  std::string rising, falling;
  for (int i = 0; i < 32; ++i) rising += char(i), falling += char(31 - i);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AA);
  CHECK(crc32c(std::string(32, '\xFF')) == 0x62A8AB43);
  CHECK(crc32c(rising) == 0x46DD794E);
  CHECK(crc32c(falling) == 0x113FDB5C);
  CHECK(crc32c("123456789") == 0xE3069283);
  CHECK(crc32c("") == 0);
}

TEST_CASE("hashes: crc32c equals its definition at every length and alignment", "[unit]") {
  std::string bytes;
  for (int i = 0; i < 80; ++i) bytes += char(i * 37 + 11);
  for (size_t begin = 0; begin < 9; ++begin)
    for (size_t length = 0; begin + length <= bytes.size(); ++length) {
      uint32_t crc = 0xFFFFFFFFu;
      for (size_t i = 0; i < length; ++i) {
        crc ^= uint8_t(bytes[begin + i]);
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0u);
      }
      REQUIRE(crc32c(std::string_view(bytes).substr(begin, length)) == ~crc);
    }
}
