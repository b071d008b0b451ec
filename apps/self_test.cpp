#include "engine/self_test.hpp"

#include <cstdio>

#include "command.hpp"

namespace vqlab {
namespace {

class SelfTestCommand : public Command {
 public:
  void declare(Options& o) override {
    o.positional("op", op_, true, "an op that `vqlab compare --op all --list` shows");
    o.positional("variant", variant_, true, "the name of one of its variants");
  }

  CommandResult run(const CommonOptions& common) override {
    const VariantOp& op = find_variant_op(op_);
    const Runtime runtime(common.device, int(common.threads));
    const VariantInfo variant = find_variant(op, runtime.device(), variant_);
    const std::string wrong = self_test(op, runtime, variant.name);
    if (!common.json)
      std::printf("%s %s on %s\n%s\n", op_.c_str(), variant_.c_str(), runtime.device_name().c_str(),
                  wrong.empty() ? "passed" : wrong.c_str());
    Json json = Json::object();
    json["op"] = op_;
    json["variant"] = variant_;
    json["device"] = runtime.device_name();
    json["passed"] = wrong.empty();
    json["why"] = wrong;
    return {.json = json, .exit_code = wrong.empty() ? 0 : int(ErrorKind::verification)};
  }

 private:
  std::string op_, variant_;
};

}  // namespace

extern const CommandEntry command_self_test;
const CommandEntry command_self_test{
    "self-test", "tests one kernel variant on small problems, as is done before a GPU's first use of it",
    []() -> std::unique_ptr<Command> { return std::make_unique<SelfTestCommand>(); }};

}  // namespace vqlab
