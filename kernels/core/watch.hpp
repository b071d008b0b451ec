// Who is told of every op that runs: a profiler. Without one an op costs a branch more.
#pragma once

#include <string>
#include <typeinfo>
#include <utility>

#include "view.hpp"

struct CUstream_st;  // *cudaStream_t

namespace vqlab {

struct Stream;

// The least that an op has to do: bytes of its operands, each read or written once, without scratch; and
// floating-point operations, of those that are many for each byte.
struct OpCost {
  double bytes = 0.0, flop = 0.0;
};

struct OpFacts {
  const std::type_info* type;  // of the op's struct
  OpCost cost;
  std::string detail;  // shape of the largest operand, or what the op says of itself
};

// An op may nest: a k-means runs lookups. Ops are run and ranges entered by one thread.
class OpWatch {
 public:
  virtual ~OpWatch() = default;
  virtual void before(const OpFacts& op, Stream stream) = 0;
  virtual void after(Stream stream) = 0;  // on the CPU the op is done, on a GPU it is enqueued
  // The engine's named spans of work, the rooms of a step (engine/runtime.hpp, Range).
  virtual void enter(const char* range) = 0;
  virtual void leave() = 0;
};

inline OpWatch* op_watch = nullptr;

// `watch` is told of all that runs while this lives.
class Watching {
 public:
  explicit Watching(OpWatch& watch) { op_watch = &watch; }
  ~Watching() { op_watch = nullptr; }
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;
};

namespace watch_detail {

struct AnyField {
  template <class T>
  operator T() const;  // NOLINT: implicit on purpose; never defined
};

inline constexpr size_t kMostFields = 18;

template <class Op, size_t... kIndex>
constexpr bool takes_fields(std::index_sequence<kIndex...>) {
  return requires { Op{(void(kIndex), AnyField())...}; };
}

template <class Op, size_t kCount = kMostFields>
constexpr size_t field_count() {
  static_assert(kCount > 0, "not a struct of at most kMostFields fields");
  if constexpr (takes_fields<Op>(std::make_index_sequence<kCount>()))
    return kCount;
  else
    return field_count<Op, kCount - 1>();
}

}  // namespace watch_detail

// Calls visit(field...) with all fields of an op, which is a struct without bases.
template <class Op, class Visit>
void visit_fields(const Op& op, const Visit& visit) {
  constexpr size_t kCount = watch_detail::field_count<Op>();
#define VQ_FIELDS(count, ...)       \
  if constexpr (kCount == count) {  \
    const auto& [__VA_ARGS__] = op; \
    visit(__VA_ARGS__);             \
  }
  VQ_FIELDS(1, a)
  VQ_FIELDS(2, a, b)
  VQ_FIELDS(3, a, b, c)
  VQ_FIELDS(4, a, b, c, d)
  VQ_FIELDS(5, a, b, c, d, e)
  VQ_FIELDS(6, a, b, c, d, e, f)
  VQ_FIELDS(7, a, b, c, d, e, f, g)
  VQ_FIELDS(8, a, b, c, d, e, f, g, h)
  VQ_FIELDS(9, a, b, c, d, e, f, g, h, i)
  VQ_FIELDS(10, a, b, c, d, e, f, g, h, i, j)
  VQ_FIELDS(11, a, b, c, d, e, f, g, h, i, j, k)
  VQ_FIELDS(12, a, b, c, d, e, f, g, h, i, j, k, l)
  VQ_FIELDS(13, a, b, c, d, e, f, g, h, i, j, k, l, m)
  VQ_FIELDS(14, a, b, c, d, e, f, g, h, i, j, k, l, m, n)
  VQ_FIELDS(15, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
  VQ_FIELDS(16, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
  VQ_FIELDS(17, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
  VQ_FIELDS(18, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r)
#undef VQ_FIELDS
}

// An operand is a View of anything but bytes, which are scratch.
template <class Field>
inline constexpr bool is_operand = false;
template <class T>
inline constexpr bool is_operand<View<T>> = !std::is_same_v<T, std::byte>;

// Calls visit(view) for the operands of an op that are there.
template <class Op, class Visit>
void visit_operands(const Op& op, const Visit& visit) {
  const auto one = [&]<class Field>(const Field& field) {
    if constexpr (is_operand<Field>)
      if (field) visit(field);
  };
  visit_fields(op, [&](const auto&... fields) { (one(fields), ...); });
}

// The bytes of an op's operands, each counted once.
template <class Op>
double operand_bytes(const Op& op) {
  double bytes = 0.0;
  visit_operands(op, [&](const auto& view) { bytes += double(view.bytes()); });
  return bytes;
}

// An op with a member cost() knows better than the sum of its operands, one with detail() than the shape of
// the largest.
template <class Op>
OpFacts facts_of(const Op& op) {
  OpFacts facts{.type = &typeid(Op), .cost = {}, .detail = {}};
  if constexpr (requires { op.cost(); })
    facts.cost = op.cost();
  else
    facts.cost.bytes = operand_bytes(op);
  if constexpr (requires { op.detail(); }) {
    facts.detail = op.detail();
  } else {
    int64_t most = -1;
    visit_operands(op, [&](const auto& view) {
      if (view.bytes() <= most) return;
      most = view.bytes();
      facts.detail = view.shape();
    });
  }
  return facts;
}

}  // namespace vqlab
