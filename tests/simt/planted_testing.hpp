// What the tests of planted bugs share: each bug must show in the flavours of the emulated device that it is
// known for, with the place.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "kernels/codebook/lookup_recheck.cuh"
#include "lookup_problems.hpp"
#include "race.hpp"
#include "simt_testing.hpp"

namespace vqlab {

// Stands for recheck_lookup in copies of lookups: score64 would decide the rows that a bug leaves open, and
// so hide it. Only notes where their number is.
inline const unsigned* doubtful_count = nullptr;

}  // namespace vqlab

namespace simt::testing {

#if defined(SIMT_ASAN)
inline constexpr bool kAsan = true;
#else
inline constexpr bool kAsan = false;
#endif

// "file:line" of the only line of a planted copy with this text.
inline std::string line_with(const std::string& plant, const std::string& file, const std::string& text) {
  std::ifstream stream(std::string(VQLAB_PLANTED) + "/" + plant + "/" + file);
  std::string line, found;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (line.find(text) == std::string::npos) continue;
    REQUIRE(found.empty());
    found = file.substr(file.rfind('/') + 1) + ":" + std::to_string(number);
  }
  REQUIRE(!found.empty());
  return found;
}

// Runs the body under every policy, the seeded ones with 10 seeds (one where one schedule shows what all
// show), and counts where it fails: "wrong" if body() is false, else the message of its Error.
struct Findings {
  unsigned runs = 0, failures = 0;
  std::string last;
};
inline Findings run_all(const std::function<bool()>& body) {
  Findings found;
  for_each_policy(race::kEnabled || kAsan ? 1 : 10, [&] {
    ++found.runs;
    bool right = false;
    const std::string message = error_of([&] { right = body(); });
    if (message.empty() && right) return;
    ++found.failures;
    found.last = message.empty() ? "wrong" : message;
  });
  return found;
}

// What a child process says before AddressSanitizer or UndefinedBehaviorSanitizer ends it; "" if they do not.
inline std::string dying_words(const std::function<bool()>& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    reset({});
    (void)error_of([&] { (void)body(); });
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char part[4096];
  for (ssize_t count; (count = read(ends[0], part, sizeof part)) > 0;) words.append(part, size_t(count));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? "" : words;
}

// What a planted bug is known for. Messages must contain all of the texts; "wrong" is a wrong result.
struct Expected {
  double plain_share = 1.0;  // of the runs of the plain flavour at least; 0: it cannot see this
  std::vector<std::string> plain = {}, race = {};
  std::vector<std::string> asan = {};  // empty: not asked
};

inline void check_contains(const std::string& message, const std::vector<std::string>& texts) {
  for (const std::string& text : texts) CHECK_THAT(message, Catch::Matchers::Contains(text));
}

inline void check_caught(const char* plant, const std::function<bool()>& body, const Expected& expected) {
  const char* flavour = race::kEnabled ? "race" : kAsan ? "asan" : "plain";
  if (kAsan) {
    if (expected.asan.empty()) return;
    const std::string words = dying_words(body);
    check_contains(words, expected.asan);
    std::printf("%-28s %-6s %s\n", plant, flavour, words.empty() ? "NOT CAUGHT" : "caught");
    return;
  }
  const Findings found = run_all(body);
  INFO(plant << ": " << found.failures << " of " << found.runs << " runs, the last: " << found.last);
  std::printf("%-28s %-6s %u of %u: %s\n", plant, flavour, found.failures, found.runs,
              found.last.substr(0, found.last.find(",\n")).c_str());
  if (race::kEnabled) {
    CHECK(found.failures == found.runs);
    check_contains(found.last, expected.race);
  } else {
    CHECK(found.failures >= expected.plain_share * found.runs);
    if (expected.plain_share == 0.0)
      CHECK(found.failures == 0);
    else
      check_contains(found.last, expected.plain);
  }
}

inline void check_silent(const std::function<bool()>& body) {
  const Findings found = run_all(body);
  INFO(found.last);
  CHECK(found.failures == 0);
}

// True if the filter of a copy finds the nearest codes and leaves as many rows open as it should: none.
inline bool filter_is_right(const vqlab::LookupVariant& variant, const vqlab::testing::LookupProblem& p) {
  using namespace vqlab;
  std::vector<int32_t> expected(size_t(p.N)), bad_row(1);
  std::vector<std::byte> host_scratch(size_t(lookup_scratch_bytes(Device::cpu, p.N, p.K, p.D)));
  run_cpu(LookupOp{.codes = {expected.data(), {p.N}},
                   .first_bad_row = {bad_row.data(), {1}},
                   .latents = {p.latents.data(), {p.N, p.D}},
                   .codebook = {p.codebook.data(), {p.K, p.D}},
                   .scratch = {host_scratch.data(), {int64_t(host_scratch.size())}}});
  const TestStream stream;
  const Buffer<float> x(p.latents, stream, "latents"), c(p.codebook, stream, "codebook");
  const Buffer<int32_t> codes(size_t(p.N), "codes"), bad(1, "first bad row");
  const int64_t bytes = variant.scratch_bytes(p.N, p.K, p.D);
  const Buffer<std::byte> scratch(size_t(bytes), "scratch");
  variant.run({.codes = {codes.data(), {p.N}},
               .first_bad_row = {bad.data(), {1}},
               .latents = {x.data(), {p.N, p.D}},
               .codebook = {c.data(), {p.K, p.D}},
               .scratch = {scratch.data(), {bytes}}},
              stream);
  unsigned doubtful = 0;
  CUDA_CHECK(cudaMemcpyAsync(&doubtful, doubtful_count, 4, cudaMemcpyDeviceToHost, stream.handle));
  return codes.download(stream) == expected && doubtful == 0;
}

}  // namespace simt::testing
