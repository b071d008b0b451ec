// JSON values: what the program writes to metrics, states and --json, and what it reads back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace vqlab {

// A JSON value. Objects keep the order of insertion. Integers stay integers. NaN and infinities are written
// as null.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  Json() = default;  // null
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t(value)) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  static Json object(Object members = {}) { return Json(std::move(members)); }
  static Json array() { return Json(Array{}); }

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // These throw Error(data) that names the wanted and the actual type.
  bool as_bool() const;
  int64_t as_integer() const;
  double as_number() const;
  const std::string& as_string() const;
  // Not of a temporary: a loop over what they give would outlive it.
  const Array& items() const&;
  const Array& items() const&& = delete;
  const Object& members() const&;
  const Object& members() const&& = delete;

  // Member `key` of an object; the const form throws Error(data) if absent, the other one inserts null (and
  // turns a null value into an object).
  Json& operator[](std::string_view key);
  const Json& at(std::string_view key) const;
  const Json* find(std::string_view key) const;  // null if absent or not an object
  void push_back(Json value);                    // on an array, or null (which becomes one)

  // One line, or indented by `indent` spaces. Numbers round-trip exactly. Invalid UTF-8 is replaced by
  // U+FFFD.
  std::string dump(int indent = 0) const;

 private:
  explicit Json(Object value) : value_(std::move(value)) {}
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

// Reads one JSON text. Throws Error(data), with `where` and the byte (from 1), on malformed text, duplicate
// keys, nesting deeper than `max_depth`, more than 2^20 values, or a number outside int64 or double.
Json parse_json(std::string_view text, const std::string& where, int max_depth = 16);

}  // namespace vqlab
