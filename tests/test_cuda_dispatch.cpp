// What the compilers made of the host half of the CUDA backend, where no GPU is needed to see it: each
// variant's entry leads to its launches, which fail for lack of a device. (nvcc once bound an entry named
// like the template run() to that template, which called the entry for ever.)
#include "engine/runtime.hpp"
#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/lookup.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

template <class Action>
void require_no_device(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    INFO(error.what());
    CHECK(int(error.kind()) == int(ErrorKind::device));
    return;
  }
  FAIL("nothing was thrown");
}

}  // namespace

TEST_CASE("cuda dispatch: without a device every variant fails at its first launch", "[unit][bad-input]") {
  if (!kWithCuda || cuda_problem().empty()) {
    WARN("SKIPPED: built without CUDA, or a CUDA device is present");
    return;
  }
  constexpr int64_t N = 40, K = 8, D = 4;
  std::vector<float> latents(size_t(N * D), 1.0f), codebook(size_t(K * D), 1.0f);
  std::vector<int32_t> codes(size_t(N), 0), counts(size_t(K), 0);
  int32_t bad_row = -1;
  std::vector<std::byte> scratch(size_t(lookup_scratch_bytes(Device::cuda, N, K, D)));
  const Stream stream{Device::cuda, nullptr};
  for (const LookupVariant* variant : lookup_variants(Device::cuda)) {
    INFO(variant->name);
    if (!variant->supports(N, K, D)) continue;
    const LookupOp op{.codes = {codes.data(), {N}},
                      .first_bad_row = {&bad_row, {1}},
                      .latents = {latents.data(), {N, D}},
                      .codebook = {codebook.data(), {K, D}},
                      .scratch = {scratch.data(), {int64_t(scratch.size())}},
                      .variant = variant};
    require_no_device([&] { variant->run(op, stream); });
  }
  scratch.resize(size_t(1) << 20);  // more than any needs; what CUB needs only a device can tell
  for (const ClusterSumsVariant* variant : cluster_sums_variants(Device::cuda)) {
    INFO(variant->name);
    const ClusterSumsOp op{.counts = {counts.data(), {K}},
                           .sums = {codebook.data(), {K, D}},
                           .latents = {latents.data(), {N, D}},
                           .codes = {codes.data(), {N}},
                           .scratch = {scratch.data(), {int64_t(scratch.size())}},
                           .variant = variant};
    require_no_device([&] { variant->run(op, stream); });
  }
}

}  // namespace vqlab::testing
