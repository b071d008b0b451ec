// For tests of pages and pictures.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "testing.hpp"

namespace vqlab::testing {

// Opened tags are closed in order, attributes are quoted, and nothing is loaded from elsewhere.
inline void require_well_formed(const std::string& html) {
  const std::set<std::string> without_end = {"meta", "!DOCTYPE"};
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != html.npos; at = html.find('<', at + 1)) {
    const size_t end = html.find('>', at);
    REQUIRE(end != html.npos);
    std::string tag = html.substr(at + 1, end - at - 1);
    INFO("<" << tag << ">");
    REQUIRE(std::count(tag.begin(), tag.end(), '"') % 2 == 0);
    REQUIRE(tag.find('<') == tag.npos);
    if (tag.starts_with("/")) {
      REQUIRE(!open.empty());
      REQUIRE(open.back() == tag.substr(1));
      open.pop_back();
    } else if (const std::string name = tag.substr(0, tag.find_first_of(" /\n"));
               !tag.ends_with("/") && !without_end.contains(name)) {
      open.push_back(name);
    }
  }
  CHECK(open.empty());
  for (const char* outside : {"://", "src=", "href=", "<script", "@import", "url("})
    CHECK(html.find(outside) == html.npos);
}

inline int64_t count_of(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace vqlab::testing
