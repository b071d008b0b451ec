// Runs CUDA kernels on the CPU, in tests only: a CUDA thread is a fiber, all fibers share one OS thread, and
// a scheduler with a seed decides who runs next at each barrier, shuffle and atomic. This header is what
// kernels (through cuda_runtime.h) and tests see. The model has no weak memory and switches at
// synchronisation points only: a green run is evidence about logic, not a result of a GPU.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#if defined(SIMT_ASAN)
#elif defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif

namespace simt {

// What the emulator found: the kind, the places, the block and thread, then kernel, policy and seed.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Policy {
  in_order,
  reverse,
  random,
  priority
};                                         // priority: random by warp, drawn anew at barriers
enum class Order { eager, lazy, random };  // queued work runs: at once; only when waited for; by a coin

struct Options {
  Policy policy = Policy::random;
  uint64_t seed = 1;
  unsigned resident_blocks = 1;  // blocks whose threads interleave
  Order order = Order::random;
  bool check_order = true;                 // report accesses that no event or wait puts in order
  size_t device_bytes = size_t(8) << 30;   // of the emulated device
  size_t closed_bytes = size_t(64) << 20;  // allocations up to this size are closed to host code
  bool captures_fail = false;              // as where a library does what a capture does not allow
};

// The options in force; at first from SIMT_POLICY, SIMT_ORDER and SIMT_SEED (the names above, in-order with a
// hyphen).
const Options& options();
// Puts new options in force and forgets pending work, errors and the history of accesses.
void reset(const Options& options);

struct Stats {
  uint64_t switches = 0, barriers = 0, collectives = 0, blocks = 0, operations = 0;
};
Stats& stats();

// ---- for kernels ----

using Place = std::source_location;

[[noreturn]] void fail(const std::string& kind, const std::string& text, Place at);
// Lets other threads run: always, or (before an atomic) one time in 8 under the random policies.
void yield();
void maybe_yield();
// __syncthreads, and what its three variants return.
struct BarrierResult {
  int count, all, any;
};
BarrierResult block_barrier(int predicate, Place at);

// The lanes of a warp meet. `present` are the lanes, arguments[l] is what lane l passed.
using Meeting = void (*)(uint32_t present, void** arguments);
// Waits until all lanes of `mask` have called this with the same mask and function; the last runs it.
void meet(const char* name, uint32_t mask, Meeting function, void* argument, Place at);
void order_lanes(uint32_t present, void** arguments);  // the meeting of __syncwarp
unsigned lane();
uint32_t active_mask();

// Shared memory of the block, as large as asked, aligned as asked and no better, at first full of NaN.
void* shared_static(const void* key, size_t bytes, size_t alignment);
void* shared_dynamic(size_t alignment);

constexpr size_t kMaxStaticSharedBytes = 48 * 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;

struct Launch {
  const char* name = "";
  const void* kernel = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  Place at;
};
// Throws Error if no GPU would accept this launch.
void check_limits(const Launch& launch);
void allow_shared_bytes(const void* kernel, size_t bytes);
// Calls body() once for each thread of the launch. Throws Error for what goes wrong in it.
void run_grid(const Launch& launch, const std::function<void()>& body);

// "pointwise.cu:14", "in-order", "lazy"
std::string file_and_line(Place at);
const char* name_of(Policy policy);
const char* name_of(Order order);

// A generator of the same numbers for the same seed (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed * 0x2545F4914F6CDD1Dull + 1) {}
  uint64_t operator()() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  size_t below(size_t n) { return size_t(((*this)() >> 32) * n >> 32); }

 private:
  uint64_t state_;
};

// Bytes around an allocation that nobody may write. Read as float, bfloat16 or half they are NaN.
void fill_band(unsigned char* begin, unsigned char* end);
bool band_is_whole(const unsigned char* begin, const unsigned char* end);

}  // namespace simt
