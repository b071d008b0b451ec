// The schedules of the device tests on the emulated device.
#include "device_testing.hpp"
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
}

}  // namespace

void for_each_schedule(const std::function<void()>& body) {
  for (const Schedule& schedule : std::initializer_list<Schedule>{{Policy::in_order, Order::eager, 1},
                                                                  {Policy::reverse, Order::lazy, 1},
                                                                  {Policy::random, Order::random, 1},
                                                                  {Policy::random, Order::lazy, 2},
                                                                  {Policy::priority, Order::random, 3}})
    run_under(schedule, body);
}

void for_few_schedules(const std::function<void()>& body) {
  for (const Schedule& schedule :
       std::initializer_list<Schedule>{{Policy::reverse, Order::lazy, 1}, {Policy::random, Order::random, 2}})
    run_under(schedule, body);
}

}  // namespace vqlab::testing
