// The choice of kernels by measurement: who is eligible, where it is kept, and who uses it.
#include "engine/tuning.hpp"

#include <cstdlib>
#include <filesystem>

#include "desk.hpp"
#include "engine/io/file.hpp"
#include "engine/kernel_choice.hpp"
#include "engine/trust.hpp"
#include "expect_error.hpp"
#include "html.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab::testing {
namespace {

using Catch::Matchers::Contains;

// HOME and the cache of this process and its children.
class CacheFolder {
 public:
  CacheFolder() { setenv("XDG_CACHE_HOME", folder_.path().c_str(), 1); }
  ~CacheFolder() {
    if (had_)
      setenv("XDG_CACHE_HOME", before_.c_str(), 1);
    else
      unsetenv("XDG_CACHE_HOME");
  }
  CacheFolder(const CacheFolder&) = delete;
  CacheFolder& operator=(const CacheFolder&) = delete;
  // The only file that `compare --tune` has written.
  std::string tuning() const {
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / "vqlab"))
      if (entry.path().filename().string().starts_with("tuning-")) return entry.path();
    return "";
  }

 private:
  const bool had_ = std::getenv("XDG_CACHE_HOME") != nullptr;
  const std::string before_ = had_ ? std::getenv("XDG_CACHE_HOME") : "";
  const TemporaryDirectory folder_;
};

VariantResult timed(const char* name, double ms) {
  return {.variant = {name, "", Device::cpu, true, true},
          .shape = {100, 16, 4},
          .rows_checked = 100,
          .timing = Timing{.median_ms = ms, .samples = 10}};
}

std::string fastest(const std::vector<VariantResult>& results, std::string_view distrusted = "") {
  const auto choice = fastest_variant(find_variant_op("lookup"), results,
                                      [&](std::string_view variant) { return variant != distrusted; });
  return choice ? choice->variant : "";
}

}  // namespace

TEST_CASE("tuning: the fastest that is exact and deterministic and trusted is chosen", "[unit]") {
  std::vector<VariantResult> results = {timed("a", 10.0), timed("b", 5.0), timed("c", 4.95), timed("d", 1.0)};
  CHECK(fastest(results) == "d");
  CHECK(fastest(results, "d") == "b");  // c is within 2 %
  results[3].variant.exact = false;
  CHECK(fastest(results) == "b");
  results[1].deterministic = false;
  CHECK(fastest(results) == "c");
  results[2].status = "MISTRUSTED";
  CHECK(fastest(results) == "a");
  results[0].timing = {};
  CHECK(fastest(results) == "");
}

TEST_CASE("tuning: choices are kept and a damaged file is as none", "[unit][bad-input]") {
  const TemporaryDirectory folder;
  const TunedChoice choice{
      .op = "lookup", .shape = {100, 16, 4}, .threads = 2, .variant = "oracle", .ms = 1.0};
  Tuning tuning("key", folder / "cache");
  CHECK(tuning.choices().empty());
  tuning.keep({choice});
  TunedChoice later = choice;
  later.variant = "fused", later.shape.N = 200;
  Tuning("key", folder / "cache").keep({later});
  const Tuning read("key", folder / "cache");
  CHECK(read.note() == "");
  CHECK(read.choices().size() == 2);
  CHECK(read.variant("lookup", {100, 16, 4}, 2) == "oracle");
  CHECK(read.variant("lookup", {200, 16, 4}, 2) == "fused");
  CHECK(read.variant("lookup", {100, 16, 4}, 1) == "");
  CHECK(read.variant("cluster_sums", {100, 16, 4}, 2) == "");
  CHECK(Tuning("another key", folder / "cache").choices().empty());
  CHECK(Tuning("key", "").choices().empty());
  for (const char* damage :
       {"{\"key\": \"key\", \"choices\"", "{\"key\": \"key\", \"choices\": [{\"op\": 7}]}", ""}) {
    write_file(read.path(), damage);
    Tuning damaged("key", folder / "cache");
    CHECK(damaged.choices().empty());
    CHECK_THAT(damaged.note(), Contains("not chosen by `compare --tune`") && Contains("tuning-"));
  }
  require_error(ErrorKind::usage, "no place for the choices", "--tune",
                [&] { Tuning("key", "").keep({choice}); });
}

TEST_CASE("tuning: the engine tries the measured variant first and only at its shape", "[unit]") {
  const TemporaryDirectory folder;
  const VariantShape shape{1024, 64, 8};
  const auto choose = [&](const std::string& tuned, const VariantShape& at, Trust* trust = nullptr,
                          const KernelsConfig& wanted = {}) {
    Tuning tuning("key", folder.path());
    tuning.keep({{.op = "lookup", .shape = shape, .threads = worker_count(), .variant = tuned}});
    const KernelChoice choice = choose_kernels(
        wanted, Device::cpu, at, trust, [](const std::string&) {}, &tuning);
    return std::string(choice.lookup->name);
  };
  const std::string first(lookup_variants(Device::cpu).front()->name);
  REQUIRE(first != "oracle");
  CHECK(choose("oracle", shape) == "oracle");
  CHECK(choose("oracle", {1025, 64, 8}) == first);
  CHECK(choose("gone", shape) == first);
  CHECK(choose("oracle", shape, nullptr, {.lookup = first}) == first);
  Trust trust("key", "", [](std::string_view, std::string_view variant) {
    return variant == "oracle" ? Verdict{.reason = "3 rows are wrong"} : Verdict{.passed = true};
  });
  CHECK(choose("oracle", shape, &trust) == first);
}

TEST_CASE("tuning: a run uses what compare --tune chose and doctor shows it", "[cli]") {
  const CacheFolder cache;
  const Desk desk;
  const std::string cpu = " --device cpu --threads 1";
  const Json tuned = json_of(run_vqlab("compare --tune --seconds 0 --json --shapes " + desk.config() + cpu));
  REQUIRE(tuned.at("tuned").items().size() == 2 * 2);  // lookup and cluster sums, training and inference
  CHECK(tuned.at("tuned_file").as_string() == cache.tuning());
  const Json doctor = json_of(run_vqlab("doctor --json" + cpu));
  REQUIRE(doctor.at("tuned").items().size() == 2 * 2);
  CHECK(doctor.at("tuned").items()[0].dump() == tuned.at("tuned").items()[0].dump());
  CHECK_THAT(run_vqlab("doctor" + cpu).out, Contains("chosen") && Contains("lookup at 32,16,4, 1 threads: "));
  // Another choice in its place, as a faster machine might make it.
  std::string kept = read_file(cache.tuning(), 1 << 20);
  for (const LookupVariant* variant : lookup_variants(Device::cpu)) {
    const std::string name = fmt::format("\"variant\": \"{}\"", variant->name);
    for (size_t at; (at = kept.find(name)) != kept.npos;) kept.replace(at, name.size(), "\"variant\": \"*\"");
  }
  for (size_t at; (at = kept.find("\"*\"")) != kept.npos;) kept.replace(at, 3, "\"oracle\"");
  write_file(cache.tuning(), kept);
  const CommandResult run = run_vqlab(desk.train("run") + "--max-steps 1" + cpu);
  CHECK(run.exit_code == 0);
  CHECK_THAT(run.err + run.out, Contains("kernels: lookup oracle, "));
  const CommandResult another = run_vqlab(desk.train("another") + "--max-steps 1 --device cpu --threads 2");
  CHECK((another.err + another.out).find("lookup oracle") == std::string::npos);
  write_file(cache.tuning(), "{");
  const CommandResult damaged = run_vqlab(desk.train("damaged") + "--max-steps 1" + cpu);
  CHECK(damaged.exit_code == 0);
  CHECK(count_of(damaged.err + damaged.out, "not chosen by `compare --tune`") == 1);
  CHECK_THAT(run_vqlab("doctor" + cpu).out, Contains("not chosen by `compare --tune`"));
}

TEST_CASE("tuning: options that leave nothing to choose are refused", "[bad-input]") {
  require_failure(run_vqlab("compare --tune"), 2, "needs the shapes", "--shapes CONFIG.toml");
  require_failure(run_vqlab("compare --tune --shape 1,1,1 --variant fused"), 2, "among all variants",
                  "leave out --variant");
  require_failure(run_vqlab("compare --tune --device cpu --shape 1,1,1 --op cluster_sums"), 2,
                  "no run chooses a kernel by cluster_sums", "leave out --op");
  require_failure(run_vqlab("compare --tune --shape 1,1,1 --verify"), 2, "nothing to choose by", "--verify");
}

}  // namespace vqlab::testing
