// The emulated device as the project's code meets it: launches and library calls go into the queues of
// streams, which run early, late or at random, and a vector clock per stream reports two accesses to one
// buffer that no stream order, event or wait puts in order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "simt.hpp"

struct CUgraph_st;
struct CUstream_st;

namespace simt {

// A part of memory that an operation reads or writes: the named part that contains the address, or, where the
// size is known, all that [address, address + bytes) touches.
struct Access {
  const void* address;
  int64_t bytes;  // 0: not known
  bool write;
  bool defines = true;  // a write after which there is something to read
};
inline Access reads(const void* address, int64_t bytes = 0) { return {address, bytes, false}; }
inline Access writes(void* address, int64_t bytes = 0) { return {address, bytes, true}; }
// What a library may write while it works, and leaves to nobody.
inline Access scratch(void* address, int64_t bytes = 0) { return {address, bytes, true, false}; }

// Puts an operation into the stream's queue. Throws Error if an access is unordered with an earlier one, and
// for whatever operations that run now find.
enum class Work { kernel, library };
void enqueue(CUstream_st* stream, std::string name, std::vector<Access> accesses,
             std::function<void()> function, Place at, Work work = Work::library,
             std::vector<std::string> arguments = {});
// For stand-ins of libraries: function() computes on the host what the library would.
inline void enqueue_library(CUstream_st* stream, const char* name, std::vector<Access> accesses,
                            std::function<void()> function, Place at = Place::current()) {
  enqueue(stream, name, std::move(accesses), std::move(function), at);
}

// Throws Error if one of the words of a struct is an address of the device.
void refuse_addresses(const void* argument, size_t bytes);

// A kernel's signature is its declaration: const T* reads, T* writes and may read. A struct with pointers
// gets an overload of visit_pointers(struct, visitor) beside it, found by its namespace.
template <class T>
void add_accesses(std::vector<Access>& accesses, const T& argument) {
  const auto visitor = [&](const auto& pointer) { add_accesses(accesses, pointer); };
  if constexpr (std::is_pointer_v<T>) {
    if (argument != nullptr)
      accesses.push_back({static_cast<const void*>(argument), 0, !std::is_const_v<std::remove_pointer_t<T>>});
  } else if constexpr (requires { visit_pointers(argument, visitor); }) {
    visit_pointers(argument, visitor);
  } else {
    static_assert(std::is_trivially_copyable_v<T>);
    if constexpr (std::is_class_v<T>) refuse_addresses(&argument, sizeof argument);
  }
}

// An argument that a captured graph would keep: numbers as text, else "".
template <class T>
std::string argument_text(const T& argument) {
  if constexpr (std::is_arithmetic_v<T>)
    return std::to_string(argument);
  else
    return "";
}

// What launch() of kernels/core/cuda.hpp does here. Arguments are converted to the kernel's parameter types.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Launch shape, CUstream_st* stream, Arguments&&... arguments) {
  static_assert((!std::is_reference_v<Parameters> && ...), "kernels take arguments by value");
  shape.kernel = reinterpret_cast<const void*>(kernel);
  check_limits(shape);
  std::tuple<std::remove_const_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  std::vector<Access> accesses;
  std::vector<std::string> texts;
  std::apply(
      [&](const auto&... value) {
        ((add_accesses(accesses, value), texts.push_back(argument_text(value))), ...);
      },
      values);
  enqueue(
      stream, shape.name, std::move(accesses),
      [kernel, shape, values] { run_grid(shape, [&] { std::apply(kernel, values); }); }, shape.at,
      Work::kernel, std::move(texts));
}

// ---- for tests ----

// Where two captures of the same work differ in a number: what the graph of the first would keep although it
// varies, as a report with the launch; "" if they do not.
std::string difference_of_captures(CUgraph_st* first, CUgraph_st* second);
// Copies of the graphs captured since reset(), in order.
const std::vector<std::shared_ptr<CUgraph_st>>& captured_graphs();

// What the host has asked of the device since the program began; the first two a step must not.
struct HostCalls {
  uint64_t synchronising = 0;  // the host waits for a stream, or copies to or from pageable memory
  uint64_t allocating = 0;     // memory, streams, events made or freed
  uint64_t waits_on_events = 0;
  // Kernels, library calls, copies and memsets given to a stream one by one, outside of captures and graphs.
  uint64_t operations = 0;
  uint64_t graphs = 0;  // launched
};
HostCalls& host_calls();

// Between cudaProfilerStart and -Stop, since the program began.
struct Profiled {
  uint64_t starts = 0, stops = 0;
  uint64_t operations = 0;         // that streams did meanwhile
  uint64_t operations_before = 0;  // that were done when it last started
};
Profiled& profiled();

size_t queued_operations();  // that no stream has done yet

}  // namespace simt
