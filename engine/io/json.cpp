#include "json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>

#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

// Bounds the memory that a hostile text can ask for: a Json is 20 times as long as its shortest text, "0,".
constexpr int64_t kMaxValues = int64_t(1) << 20;

constexpr const char* kHint = "the file is damaged or was edited by hand; restore it";
constexpr const char* kTypeNames[] = {"null",     "a boolean", "an integer", "a number",
                                      "a string", "an array",  "an object"};

template <class T, class Variant>
const T& get(const Variant& value, const char* wanted) {
  if (const T* found = std::get_if<T>(&value)) return *found;
  throw Error(ErrorKind::data, fmt::format("expected {} but found {}", wanted, kTypeNames[value.index()]),
              "the file was edited or written by another program; restore it", "JSON");
}

// Bytes of the well-formed UTF-8 sequence at the start of `text` (Unicode, table 3-7), or 0.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : uint8_t(0); };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first < 0xC2 || !continues(1)) return 0;
  if (first < 0xE0) return 2;
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || !continues(2)) return 0;
  if (first < 0xF0) return 3;
  if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F) || first > 0xF4) return 0;
  return continues(3) ? 4 : 0;
}

void write_string(std::string& out, std::string_view text) {
  out += '"';
  while (!text.empty()) {
    const char c = text[0];
    const size_t length = utf8_length(text);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (uint8_t(c) < 0x20) {
      out += fmt::format("\\u{:04x}", uint8_t(c));
    } else {
      out += length ? text.substr(0, length) : "\xEF\xBF\xBD";
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  out += '"';
}

// The shortest text that reads back as the same double, and as a double.
void write_double(std::string& out, double value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  const std::string text = fmt::format("{}", value);
  out += text;
  if (text.find_first_of(".e") == std::string::npos) out += ".0";
}

void write_value(std::string& out, const Json& value, int indent, int depth);

// `write_item(item)` writes one of `items` between the brackets.
template <class Items, class WriteItem>
void write_list(std::string& out, const char* brackets, const Items& items, int indent, int depth,
                const WriteItem& write_item) {
  const auto new_line = [&](int level) {
    if (indent > 0) out.append(1, '\n').append(size_t(indent * level), ' ');
  };
  out += brackets[0];
  bool first = true;
  for (const auto& item : items) {
    if (!first) out += indent > 0 ? "," : ", ";
    first = false;
    new_line(depth + 1);
    write_item(item);
  }
  if (!first) new_line(depth);
  out += brackets[1];
}

void write_value(std::string& out, const Json& value, int indent, int depth) {
  if (value.is_null()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_bool() ? "true" : "false";
  } else if (value.is_integer()) {
    out += std::to_string(value.as_integer());
  } else if (value.is_number()) {
    write_double(out, value.as_number());
  } else if (value.is_string()) {
    write_string(out, value.as_string());
  } else if (value.is_array()) {
    write_list(out, "[]", value.items(), indent, depth,
               [&](const Json& item) { write_value(out, item, indent, depth + 1); });
  } else {
    write_list(out, "{}", value.members(), indent, depth, [&](const auto& member) {
      write_string(out, member.first);
      out += ": ";
      write_value(out, member.second, indent, depth + 1);
    });
  }
}

// Walks the text and leaves its place in `*position`, so that errors can name the byte.
struct TrackedIterator {
  using difference_type = std::ptrdiff_t;
  using value_type = char;
  using pointer = const char*;
  using reference = const char&;
  using iterator_category = std::input_iterator_tag;

  const char* at;
  const char** position;

  reference operator*() const { return *at; }
  TrackedIterator& operator++() {
    *position = ++at;
    return *this;
  }
  bool operator==(const TrackedIterator& other) const { return at == other.at; }
  bool operator!=(const TrackedIterator& other) const { return at != other.at; }
};

// Receives the parser's events and builds the value. Iterative: the open containers stand in a stack.
class Builder {
 public:
  using Base = nlohmann::json;

  Builder(std::string_view text, const std::string& where, int max_depth)
      : begin_(text.data()), position_(text.data()), where_(where), max_depth_(max_depth) {}
  const char** position() { return &position_; }
  Json take() { return std::move(root_); }

  bool null() { return add(Json()); }
  bool boolean(bool value) { return add(Json(value)); }
  bool number_integer(Base::number_integer_t value) { return add(Json(int64_t(value))); }
  bool number_unsigned(Base::number_unsigned_t value) {
    if (value > uint64_t(INT64_MAX)) fail("an integer outside the range of int64");
    return add(Json(int64_t(value)));
  }
  bool number_float(Base::number_float_t value, const std::string& text) {
    // The parser turns integers that do not fit into floats.
    if (text.find_first_of(".eE") == std::string::npos) fail("an integer outside the range of int64");
    return add(Json(value));
  }
  bool string(std::string& value) { return add(Json(std::move(value))); }
  bool binary(Base::binary_t&) { return false; }  // occurs in other formats only
  bool start_object(size_t) { return open(true); }
  bool start_array(size_t) { return open(false); }
  bool end_object() {
    reject_duplicates(open_.back().members);
    return close();
  }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    open_.back().key = std::move(name);
    return true;
  }
  template <class Exception>
  bool parse_error(size_t byte, const std::string&, const Exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." or
    // "[json.exception.out_of_range.406] number overflow ..."
    std::string_view text = error.what();
    for (const std::string_view mark : {"] ", "column ", ": "})
      if (const size_t at = text.find(mark); at != text.npos) text.remove_prefix(at + mark.size());
    fail_at(int64_t(byte), std::string(text.substr(0, 200)));  // it quotes the text, of any length
  }

 private:
  [[noreturn]] void fail_at(int64_t byte, const std::string& what) const {
    throw Error(ErrorKind::data, fmt::format("invalid JSON at byte {}: {}", byte, what), kHint, where_);
  }
  [[noreturn]] void fail(const std::string& what) const { fail_at(position_ - begin_, what); }

  // A container whose end has not been read; one of its two lists is in use.
  struct Open {
    bool is_object;
    Json::Array items;
    Json::Object members;
    std::string key;
  };

  bool add(Json value) {
    if (++values_ > kMaxValues) fail(fmt::format("more than {} values", kMaxValues));
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (Open& top = open_.back(); top.is_object) {
      top.members.emplace_back(std::move(top.key), std::move(value));
    } else {
      top.items.push_back(std::move(value));
    }
    return true;
  }
  bool open(bool is_object) {
    if (int(open_.size()) >= max_depth_) fail(fmt::format("nested deeper than {}", max_depth_));
    open_.push_back({is_object, {}, {}, {}});
    return true;
  }
  bool close() {
    Open top = std::move(open_.back());
    open_.pop_back();
    return add(top.is_object ? Json::object(std::move(top.members)) : Json(std::move(top.items)));
  }
  void reject_duplicates(const Json::Object& members) const {
    std::vector<std::string_view> keys;
    for (const auto& [key, value] : members) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) fail(fmt::format("key '{}' occurs twice in the object that ends here", *twice));
  }

  const char* begin_;
  const char* position_;
  const std::string& where_;
  int max_depth_;
  int64_t values_ = 0;
  std::vector<Open> open_;
  Json root_;
};

}  // namespace

bool Json::as_bool() const { return get<bool>(value_, "a boolean"); }
int64_t Json::as_integer() const { return get<int64_t>(value_, "an integer"); }
double Json::as_number() const {
  return is_integer() ? double(as_integer()) : get<double>(value_, "a number");
}
const std::string& Json::as_string() const { return get<std::string>(value_, "a string"); }
const Json::Array& Json::items() const& { return get<Array>(value_, "an array"); }
const Json::Object& Json::members() const& { return get<Object>(value_, "an object"); }

const Json* Json::find(std::string_view key) const {
  if (const Object* object = std::get_if<Object>(&value_))
    for (const auto& member : *object)
      if (member.first == key) return &member.second;
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  members();  // throws unless an object
  if (const Json* found = find(key)) return *found;
  throw Error(ErrorKind::data, fmt::format("key '{}' is missing", key),
              "the file was edited or written by another version; restore it", "JSON");
}

Json& Json::operator[](std::string_view key) {
  if (is_null()) value_ = Object{};
  if (const Json* found = find(key)) return const_cast<Json&>(*found);
  members();  // throws unless an object
  return std::get<Object>(value_).emplace_back(std::string(key), Json()).second;
}

void Json::push_back(Json value) {
  if (is_null()) value_ = Array{};
  items();  // throws unless an array
  std::get<Array>(value_).push_back(std::move(value));
}

std::string Json::dump(int indent) const {
  std::string out;
  write_value(out, *this, indent, 0);
  return out;
}

Json parse_json(std::string_view text, const std::string& where, int max_depth) {
  Builder builder(text, where, max_depth);
  // The parser takes a zero byte for the end of the text.
  if (const size_t zero = text.find('\0'); zero != text.npos)
    throw Error(ErrorKind::data, fmt::format("invalid JSON at byte {}: a zero byte", zero + 1), kHint, where);
  const char* end = text.data() + text.size();
  nlohmann::json::sax_parse(TrackedIterator{text.data(), builder.position()},
                            TrackedIterator{end, builder.position()}, &builder);
  return builder.take();
}

}  // namespace vqlab
