// `vqlab inspect` as its users meet it: findings, pictures, and runs without a codebook.
#include "desk.hpp"
#include "engine/io/file.hpp"

namespace vqlab::testing {

TEST_CASE("cli: inspect names the rule that fires and the setting to change", "[cli]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--set train.batch_size=2 --set quantizer.codebook_size=16 --json"));
  const Json inspected = json_of(run_vqlab("inspect " + (desk / "run") + " --json"));
  const Json* found = nullptr;
  for (const Json& finding : inspected.at("findings").items()) {
    require_keys(finding, {"rule", "what", "setting"});
    if (finding.at("rule").as_string() == "more-codes-than-latents") found = &finding;
  }
  REQUIRE(found != nullptr);
  CHECK(found->at("what").as_string() == "16 codes compete for the 8 latents of a batch");
  CHECK(found->at("setting").as_string() == "train.batch_size = 4");
  const CommandResult printed = run_vqlab("inspect " + (desk / "run"));
  CHECK(printed.out.find("\nfinding: more-codes-than-latents: 16 codes compete for the 8 latents of a batch: "
                         "set train.batch_size = 4\n") != std::string::npos);
}

TEST_CASE("cli: inspect draws the codes and their use", "[cli]") {
  const Desk desk(30, 33, 3);
  json_of(run_vqlab(desk.train("run") + "--json"));
  const std::string inspect = "inspect " + (desk / "run") + " -o " + (desk / "seen");
  const Json inspected = json_of(run_vqlab(inspect + " --json"));
  REQUIRE(inspected.at("files").items().size() == 2);
  for (const char* name : {"codebook.png", "usage.png"})
    CHECK(read_file(desk / (std::string("seen/") + name), 1 << 24).substr(1, 3) == "PNG");
  const Json& usage = inspected.at("usage");
  CHECK(usage.at("images").as_integer() == 24);
  CHECK(usage.at("latents").as_integer() == 24 * 8 * 9);
  const Json evaluated = json_of(run_vqlab("eval " + (desk / "run") + " --json"));
  CHECK(usage.at("used").as_integer() == evaluated.at("codes_used").as_integer());
  CHECK(usage.at("perplexity").as_number() == evaluated.at("perplexity").as_number());
  const CommandResult printed = run_vqlab(inspect);
  CHECK(printed.out.find("wrote " + (desk / "seen/codebook.png") + "\n") != std::string::npos);
  CHECK(printed.out.find("wrote " + (desk / "seen/usage.png") + "\n") != std::string::npos);
}

TEST_CASE("cli: inspect says why there is no codebook", "[cli][bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("plain") + "--set quantizer.kind=none --json"));
  json_of(run_vqlab(desk.train("run") + "--set checkpoint.keep=3 --json"));
  const CommandResult plain = run_vqlab("inspect " + (desk / "plain"));
  CHECK(plain.exit_code == 0);
  CHECK(plain.out.find("codebook: none: the model is a plain autoencoder") != std::string::npos);
  require_failure(run_vqlab("inspect " + (desk / "plain") + " -o " + (desk / "p")), 2,
                  "inspect -o needs codes", "use a run of another quantizer.kind");
  CHECK(!std::filesystem::exists(desk / "p"));
  const std::string first = "inspect " + (desk / "run") + " --checkpoint step-00000000";
  CHECK(json_of(run_vqlab(first + " --json")).at("codebook_missing").as_string() ==
        "the codebook still waits for its first latents");
  require_failure(run_vqlab(first + " -o " + (desk / "p")), 2,
                  "the codebook of this checkpoint is not initialised", "train further");
}

}  // namespace vqlab::testing
