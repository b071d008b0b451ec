// Random numbers, permutations, worker threads, the order of sums.
#include <rapidcheck.h>

#include <atomic>
#include <set>

#include "kernels/core/names.hpp"
#include "kernels/core/parallel.hpp"
#include "testing.hpp"

namespace vqlab::testing {

TEST_CASE("random: philox gives the published answers", "[unit]") {
  // Random123's known-answer vectors for philox4x32-10: counter and key all zero, then all ones.
  constexpr philox4x32_ctr_t kZeroCounter = {{0, 0, 0, 0}};
  constexpr philox4x32_key_t kZeroKey = {{0, 0}};
  const philox4x32_ctr_t zeros = philox4x32(kZeroCounter, kZeroKey);
  CHECK(zeros.v[0] == 0x6627e8d5u);
  CHECK(zeros.v[3] == 0x9b00dbd8u);
  constexpr uint32_t kAll = 0xffffffffu;
  constexpr philox4x32_ctr_t kFullCounter = {{kAll, kAll, kAll, kAll}};
  constexpr philox4x32_key_t kFullKey = {{kAll, kAll}};
  const philox4x32_ctr_t ones = philox4x32(kFullCounter, kFullKey);
  CHECK(ones.v[0] == 0x408f276du);
  CHECK(ones.v[3] == 0x6d5451fdu);
}

TEST_CASE("random: every part of the key changes the bits", "[unit]") {
  const RandomKey key{.seed = 1, .step = 2, .use = RandomUse::order, .tensor = 3};
  std::set<uint32_t> seen = {random_bits(key, 4).v[0], random_bits(key, 5).v[0],
                             random_bits(key, uint64_t(4) << 32).v[0]};
  RandomKey other = key;
  other.seed = uint64_t(1) << 40;
  seen.insert(random_bits(other, 4).v[0]);
  other = key, other.step = 3;
  seen.insert(random_bits(other, 4).v[0]);
  other = key, other.use = RandomUse::restart;
  seen.insert(random_bits(other, 4).v[0]);
  other = key, other.tensor = 4;
  seen.insert(random_bits(other, 4).v[0]);
  CHECK(seen.size() == 7);
}

TEST_CASE("random: a permutation reaches every place once", "[unit]") {
  CHECK(rc::check([] {
    const auto size = *rc::gen::inRange<uint64_t>(1, 3000);
    const Permutation order(
        {.seed = *rc::gen::arbitrary<uint64_t>(), .step = 1, .use = RandomUse::order, .tensor = 0}, size);
    std::vector<bool> reached(size);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t place = order(i);
      RC_ASSERT(place < size);
      RC_ASSERT(!reached[place]);
      reached[place] = true;
    }
  }));
}

TEST_CASE("random: a permutation does not keep the order", "[unit]") {
  const Permutation order({.seed = 1, .step = 0, .use = RandomUse::order, .tensor = 0}, 1000);
  int64_t fixed = 0, displacement = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    fixed += order(i) == i;
    displacement += std::abs(int64_t(order(i)) - int64_t(i));
  }
  CHECK(fixed <= 8);                  // Poisson with mean 1: more than 8 has probability 1e-6
  CHECK(displacement / 1000 >= 300);  // a uniform permutation has 333
}

TEST_CASE("parallel: every shard runs once for any number of workers", "[unit]") {
  for (const int workers : {1, 2, 3, 7}) {
    set_worker_count(workers);
    REQUIRE(worker_count() == workers);
    for (const int64_t shards : {0, 1, 2, 5, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(shards));
      std::atomic<bool> in_range{true};
      parallel_for(shards, [&](int64_t shard, int worker) {
        ++runs[size_t(shard)];
        if (worker < 0 || worker >= workers) in_range = false;
      });
      for (const auto& count : runs) REQUIRE(count == 1);
      CHECK(in_range);
    }
  }
  set_worker_count(0);
}

TEST_CASE("parallel: an exception reaches the caller and the pool stays usable", "[unit]") {
  set_worker_count(3);
  CHECK_THROWS_AS(parallel_for(100,
                               [](int64_t shard, int) {
                                 if (shard == 50) throw Error(ErrorKind::failed, "x", "y");
                               }),
                  Error);
  std::atomic<int> runs{0};
  parallel_for(100, [&](int64_t, int) { ++runs; });
  CHECK(runs == 100);
  set_worker_count(0);
}

TEST_CASE("parallel: a nested call runs every shard", "[unit]") {
  set_worker_count(2);
  std::atomic<int> runs{0};
  parallel_for(4, [&](int64_t, int) { parallel_for(5, [&](int64_t, int) { ++runs; }); });
  CHECK(runs == 20);
  set_worker_count(0);
}

TEST_CASE("names: the nearest name is suggested", "[unit]") {
  const std::vector<std::string_view> names = {"epochs", "batch_size", "learning_rate"};
  CHECK(nearest_name("epoch", names) == "epochs");
  CHECK(nearest_name("learnin_rate", names) == "learning_rate");
  CHECK(nearest_name("xyz", names) == "");
}

}  // namespace vqlab::testing
