#include "axes.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

constexpr size_t kMostMembers = 1000;
constexpr size_t kLongestName = 200;  // a file name holds 255 bytes, and "-seedN" comes after
constexpr double kRangeSlack = 1e-9;  // so that 0.1:0.3:+0.1 reaches 0.3

[[noreturn]] void fail(const std::string& what, const std::string& hint, const std::string& where) {
  throw Error(ErrorKind::usage, what, hint, where);
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(' '), end = text.find_last_not_of(' ');
  return begin == text.npos ? "" : text.substr(begin, end - begin + 1);
}

// At commas outside brackets and quotes.
std::vector<std::string> split_top_level(const std::string& text, const std::string& where) {
  std::vector<std::string> parts(1);
  int depth = 0;
  char quote = 0;
  for (const char c : text) {
    if (quote) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '[') {
      ++depth;
    } else if (c == ']') {
      if (--depth < 0) break;
    }
    if (c == ',' && depth == 0 && !quote)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  if (depth != 0 || quote)
    fail("brackets or quotes do not match", "for example -a quantizer.levels=[8,6,5],[8,8,8]", where);
  for (std::string& part : parts) part = trimmed(part);
  return parts;
}

// The values of "a:b:xF" or "a:b:+S", or nothing if the text has another form.
std::vector<std::string> expand_range(const std::string& text, const std::string& where) {
  const size_t one = text.find(':'), two = one == text.npos ? one : text.find(':', one + 1);
  if (two == text.npos || two + 2 > text.size() || (text[two + 1] != 'x' && text[two + 1] != '+')) return {};
  const auto low = parse_number(text.substr(0, one)),
             high = parse_number(text.substr(one + 1, two - one - 1)),
             by = parse_number(text.substr(two + 2));
  if (!low || !high || !by) return {};
  const bool grows = text[two + 1] == 'x' ? *low > 0.0 && *by > 1.0 : *by > 0.0;
  if (!grows || *high < *low)
    fail(fmt::format("the range {} does not go up to its end", text),
         "a:b:xF needs 0 < a <= b and F > 1, and a:b:+S needs a <= b and S > 0", where);
  std::vector<std::string> values;
  for (int i = 0; values.size() <= kMostMembers; ++i) {
    const double value = text[two + 1] == 'x' ? *low * std::pow(*by, i) : *low + i * *by;
    if (value > *high + kRangeSlack * std::abs(*high)) break;
    // Rounded to 12 digits: 0.1 + 2 * 0.1 is to be 0.3.
    const double rounded = *parse_number(fmt::format("{:.12g}", value));
    values.push_back(std::abs(rounded) < 1e15 && rounded == std::floor(rounded)
                         ? fmt::format("{}", int64_t(rounded))
                         : fmt::format("{}", rounded));
  }
  if (values.size() > kMostMembers)
    fail(fmt::format("the range {} has more than {} values", text, kMostMembers), "take larger steps", where);
  return values;
}

std::string last_part(const std::string& key) { return key.substr(key.rfind('.') + 1); }

// Letters, digits and . + - = _ stay; quotes, brackets and spaces go; the rest becomes a dash.
std::string name_of(const std::string& value) {
  std::string name;
  for (const char c : value) {
    if (c == '"' || c == '\'' || c == '[' || c == ']' || c == ' ') continue;
    const bool plain =
        std::isalnum(static_cast<unsigned char>(c)) || std::string(".+-=_").find(c) != std::string::npos;
    name += plain ? c : '-';
  }
  return name;
}

}  // namespace

std::optional<double> parse_number(std::string_view text) {
  double number = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(number)) return {};
  return number;
}

SweepAxis parse_axis(const std::string& text) {
  const std::string where = "-a " + text;
  const size_t equals = text.find('=');
  SweepAxis axis{.key = trimmed(text.substr(0, equals)), .values = {}};
  if (equals == text.npos || axis.key.empty())
    fail("an axis needs the form KEY=V1,V2,...", "for example -a quantizer.codebook_size=256,512", where);
  if (axis.key == "seed" || axis.key == "name")
    fail(fmt::format("{} is not an axis", axis.key),
         axis.key == "seed" ? "use --seeds 0,1,2" : "members are named after their values", where);
  for (const std::string& part : split_top_level(text.substr(equals + 1), where)) {
    if (part.empty()) fail("a value is empty", "write values between commas: KEY=V1,V2", where);
    const std::vector<std::string> range = expand_range(part, where);
    if (range.empty())
      axis.values.push_back(part);
    else
      axis.values.insert(axis.values.end(), range.begin(), range.end());
  }
  std::set<std::string> seen;
  for (const std::string& value : axis.values)
    if (!seen.insert(value).second)
      fail(fmt::format("the value {} is there twice", value), "give each value once", where);
  return axis;
}

std::vector<SweepPoint> multiply(const std::vector<SweepAxis>& axes) {
  std::map<std::string, int> keys, short_names;
  size_t count = 1;
  for (const SweepAxis& axis : axes) {
    if (++keys[axis.key] > 1)
      fail(fmt::format("{} is on two axes", axis.key), "give all its values on one", "-a " + axis.key);
    ++short_names[last_part(axis.key)];
    count *= std::max(size_t(1), axis.values.size());
    if (count > kMostMembers)
      fail(fmt::format("the axes multiply to more than {} members", kMostMembers), "take fewer values", "-a");
  }
  std::vector<SweepPoint> points(1);
  for (const SweepAxis& axis : axes) {
    const std::string part = last_part(axis.key), key = short_names[part] > 1 ? axis.key : part;
    std::vector<SweepPoint> next;
    for (const SweepPoint& point : points)
      for (const std::string& value : axis.values) {
        next.push_back(point);
        next.back().name += fmt::format("{}{}={}", point.name.empty() ? "" : ",", key, name_of(value));
        next.back().overrides.push_back(axis.key + "=" + value);
      }
    points = std::move(next);
  }
  std::set<std::string> names;
  for (const SweepPoint& point : points) {
    if (point.name.size() > kLongestName)
      fail(fmt::format("the name {} is too long for a directory", point.name), "sweep over fewer keys", "-a");
    if (!names.insert(point.name).second)
      fail(fmt::format("two members would be named {}", point.name),
           "choose values that differ in letters or digits", "-a");
  }
  return points;
}

std::vector<int64_t> parse_seeds(const std::string& text) {
  std::vector<int64_t> seeds;
  for (const std::string& part : split_top_level(text, "--seeds " + text)) {
    int64_t seed = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), seed);
    if (error != std::errc() || end != part.data() + part.size() || seed < 0)
      fail(fmt::format("'{}' is not a seed", part), "whole numbers from 0, for example --seeds 0,1,2",
           "--seeds " + text);
    if (std::find(seeds.begin(), seeds.end(), seed) != seeds.end())
      fail(fmt::format("the seed {} is there twice", seed), "give each seed once", "--seeds " + text);
    seeds.push_back(seed);
  }
  return seeds;
}

std::vector<double> parse_numbers(const std::string& text, const std::string& option) {
  std::vector<double> numbers;
  if (text.empty()) return numbers;
  for (const std::string& part : split_top_level(text, option + " " + text)) {
    const std::optional<double> number = parse_number(part);
    if (!number || *number <= 0.0)
      fail(fmt::format("'{}' is not a positive number", part),
           fmt::format("for example {} 0.02,0.01", option), option + " " + text);
    numbers.push_back(*number);
  }
  return numbers;
}

}  // namespace vqlab
