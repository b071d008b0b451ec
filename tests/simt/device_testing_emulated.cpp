// The schedules of the device tests on the emulated device.
#include <cstdlib>

#include "device_testing.hpp"
#include "race.hpp"
#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#endif
#include "simt.hpp"

namespace vqlab::testing {
namespace {

using simt::Order, simt::Policy;

struct Schedule {
  Policy policy;
  Order order;
  uint64_t seed;
};

void run_under(const Schedule& schedule, const std::function<void()>& body) {
  INFO("policy " << simt::name_of(schedule.policy) << ", order " << simt::name_of(schedule.order) << ", seed "
                 << schedule.seed);
  simt::Options options;
  options.policy = schedule.policy;
  options.order = schedule.order;
  options.seed = schedule.seed;
  simt::reset(options);
  body();
  synchronize();  // throws what a destructor has found
}

// The race checker and AddressSanitizer see under one schedule what they see under any.
void run_under_all(std::vector<Schedule> schedules, const std::function<void()>& body) {
  if (memory_is_checked()) schedules = {{Policy::random, Order::random, 1}};
  if (std::getenv("VQLAB_ALL_SCHEDULES") != nullptr) {  // every policy with ten seeds: for a long run by hand
    schedules.clear();
    for (const Policy policy : {Policy::in_order, Policy::reverse, Policy::random, Policy::priority})
      for (uint64_t seed = 1; seed <= 10; ++seed)
        schedules.push_back({policy, seed % 2 == 0 ? Order::lazy : Order::random, seed});
  }
  for (const Schedule& schedule : schedules) run_under(schedule, body);
}

}  // namespace

bool memory_is_checked() {
#if defined(SIMT_RACE) || defined(SIMT_ASAN)
  return true;
#else
  return false;
#endif
}

void tell_checkers(const void* address, int64_t bytes, Bytes what) {
  simt::race::mark(address, size_t(bytes), simt::race::Bytes(what));
#if defined(SIMT_ASAN)
  if (what == Bytes::nobodys)
    __asan_poison_memory_region(address, size_t(bytes));
  else
    __asan_unpoison_memory_region(address, size_t(bytes));
#endif
}

void for_each_schedule(const std::function<void()>& body) {
  run_under_all({{Policy::in_order, Order::eager, 1},
                 {Policy::reverse, Order::lazy, 1},
                 {Policy::random, Order::random, 1},
                 {Policy::random, Order::lazy, 2},
                 {Policy::priority, Order::random, 3}},
                body);
}

void for_few_schedules(const std::function<void()>& body) {
  run_under_all({{Policy::reverse, Order::lazy, 1}, {Policy::random, Order::random, 2}}, body);
}

}  // namespace vqlab::testing
