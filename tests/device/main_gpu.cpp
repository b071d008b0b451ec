// The device tests on a GPU: each is skipped, visibly, where there is none.
#define CATCH_CONFIG_RUNNER
#include <cstdio>

#include "device_testing.hpp"

namespace vqlab::testing {

void for_each_schedule(const std::function<void()>& body) { body(); }
void for_few_schedules(const std::function<void()>& body) { body(); }
bool memory_is_checked() { return false; }
void tell_checkers(const void*, int64_t, Bytes) {}  // compute-sanitizer has its own

}  // namespace vqlab::testing

int main(int argc, char* argv[]) {
  if (const std::string problem = vqlab::cuda_problem(); !problem.empty()) {
    std::printf("SKIPPED: %s\n", problem.c_str());
    return 0;
  }
  return Catch::Session().run(argc, argv);
}
