#include "parallel.hpp"

#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"

namespace vqlab {
namespace {

using Body = FunctionRef<void(int64_t, int)>;

// Set while a thread runs shards: a nested parallel_for then stays on its thread.
thread_local bool inside_region = false;
struct RegionGuard {
  RegionGuard() { inside_region = true; }
  ~RegionGuard() { inside_region = false; }
};

// One parallel region at a time: the caller publishes the work by a new generation number and takes part as
// worker 0.
class Pool {
 public:
  explicit Pool(int workers) {
    try {
      for (int w = 1; w < workers; ++w) threads_.emplace_back([this, w] { serve(w); });
    } catch (const std::system_error& error) {
      stop();
      throw Error(ErrorKind::resources,
                  fmt::format("cannot start {} threads: {}", workers, error.code().message()),
                  "use fewer --threads");
    }
  }
  ~Pool() { stop(); }
  int workers() const { return int(threads_.size()) + 1; }

  void run(int64_t shards, const Body& body) {
    shards_ = shards;
    body_ = &body;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(threads_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    work(0);
    for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; ++spin)
      if (spin > kSpins) std::this_thread::yield();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // About 50 us: longer than the gap between two ops of a step, so that a worker rarely sleeps within one.
  static constexpr int kSpins = 2000;

  void stop() {
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  void serve(int worker) {
    uint32_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin)
        pause();
      generation_.wait(seen, std::memory_order_acquire);
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      work(worker);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  void work(int worker) {
    const RegionGuard guard;
    try {
      while (true) {
        const int64_t shard = next_.fetch_add(1, std::memory_order_relaxed);
        if (shard >= shards_) return;
        (*body_)(shard, worker);
      }
    } catch (...) {
      next_.store(shards_, std::memory_order_relaxed);
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::vector<std::thread> threads_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  int64_t shards_ = 0;
  const Body* body_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

std::unique_ptr<Pool>& pool() {
  static std::unique_ptr<Pool> instance =
      std::make_unique<Pool>(std::max(1, int(std::thread::hardware_concurrency())));
  return instance;
}

}  // namespace

void set_worker_count(int count) {
  if (count <= 0) count = std::max(1, int(std::thread::hardware_concurrency()));
  if (count != pool()->workers()) pool() = std::make_unique<Pool>(count);
}

int worker_count() { return pool()->workers(); }

void parallel_for(int64_t shards, Body body) {
  if (shards <= 0) return;
  if (shards == 1 || inside_region || pool()->workers() == 1) {
    for (int64_t shard = 0; shard < shards; ++shard) body(shard, 0);
    return;
  }
  pool()->run(shards, body);
}

}  // namespace vqlab
