// The one exception type and the checks that throw it.
#pragma once

#if defined(__NVCC__)
#define FMT_USE_CONSTEXPR 1  // fmt 9 turns constexpr off for nvcc, and its consteval then does not compile
#endif
#include <fmt/core.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>

namespace vqlab {

// What went wrong, in the caller's terms. The value is the exit code of the program.
enum class ErrorKind {
  failed = 1,        // the run diverged, or a defect of ours
  usage = 2,         // command line or configuration
  data = 3,          // data missing or damaged
  checkpoint = 4,    // checkpoint damaged or of another model
  resources = 5,     // memory or disk exhausted
  device = 6,        // a required device is absent
  verification = 7,  // a variant computed a wrong result
  locked = 8,        // another process owns the run directory
};

// A failure with its place and its remedy; printed by main as `error: what (where)` and `hint: hint`.
class Error : public std::runtime_error {
 public:
  // `where` is the place in the user's world (file, config line, option). Left empty, it is the source
  // position.
  Error(ErrorKind kind, const std::string& what, std::string hint, std::string where = "",
        std::source_location at = std::source_location::current())
      : std::runtime_error(what), kind_(kind), hint_(std::move(hint)), where_(std::move(where)) {
    if (where_.empty()) where_ = fmt::format("{}:{}", at.file_name(), at.line());
  }
  ErrorKind kind() const { return kind_; }
  const std::string& hint() const { return hint_; }
  const std::string& where() const { return where_; }

 private:
  ErrorKind kind_;
  std::string hint_, where_;
};

}  // namespace vqlab

// The caller's mistake: always checked. The message is a fmt format and its arguments.
#define VQ_REQUIRE(condition, ...)                                                                 \
  do {                                                                                             \
    if (!(condition))                                                                              \
      throw ::vqlab::Error(::vqlab::ErrorKind::failed, ::fmt::format(__VA_ARGS__),                 \
                           "this is a defect in vqlab or in the code that calls it: " #condition); \
  } while (0)

// Our own mistake: checked in debug builds only.
#ifdef NDEBUG
#define VQ_ASSERT(condition) ((void)0)
#else
#define VQ_ASSERT(condition) VQ_REQUIRE(condition, "assertion failed: {}", #condition)
#endif
