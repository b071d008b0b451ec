// The worker threads of the CPU backend. Work is cut into shards whose number depends on the problem alone,
// and whoever adds up shards does so in shard order: so no result depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace vqlab {

// Threads that parallel_for uses, the caller included. `count` 0 = all cores. Not to be called inside
// parallel_for.
void set_worker_count(int count);
int worker_count();

// A borrowed callable, valid only during the call it is passed to.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT: implicit on purpose, so that a lambda can be passed
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* o, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(o))(args...);
        }) {}
  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// Calls body(shard, worker) once for every shard in [0, shards) and returns when all are done. worker is in
// [0, worker_count()) and names the scratch that the shard may use. A nested call runs on its caller's
// thread, as worker 0. The first exception is rethrown here.
void parallel_for(int64_t shards, FunctionRef<void(int64_t shard, int worker)> body);

// Calls body(begin, end) over [0, size) in pieces of `grain` elements: for elementwise work.
template <class Body>
void parallel_ranges(int64_t size, int64_t grain, const Body& body) {
  const int64_t pieces = (size + grain - 1) / grain;
  parallel_for(pieces, [&](int64_t piece, int) { body(piece * grain, std::min(size, (piece + 1) * grain)); });
}

}  // namespace vqlab

// Compiles a function for AVX-512, AVX2 and the baseline, chosen when the program is loaded. Safe for bit
// equality: without fused contraction (-ffp-contract=off) elementwise arithmetic gives the same bits at every
// vector width.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define VQ_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VQ_MULTIVERSION
#endif
