// Parses the command line, runs the command, turns errors into two lines and an exit code.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>

#include "command.hpp"
#include "engine/environment.hpp"
#include "kernels/core/check.hpp"
#include "kernels/core/names.hpp"

namespace vqlab {

#define VQ_COMMAND(name) extern const CommandEntry command_##name;
#include "commands.def"
#undef VQ_COMMAND

std::span<const CommandEntry* const> commands() {
  static constexpr const CommandEntry* kEntries[] = {
#define VQ_COMMAND(name) &command_##name,
#include "commands.def"
#undef VQ_COMMAND
  };
  return kEntries;
}

namespace {

class CliOptions : public Options {
 public:
  explicit CliOptions(CLI::App& app) : app_(app) {}
  void option(const std::string& name, std::string& value, const std::string& help) override {
    app_.add_option(flags(name), value, help)->capture_default_str();
  }
  void option(const std::string& name, int64_t& value, int64_t low, int64_t high,
              const std::string& help) override {
    app_.add_option(flags(name), value, help)->check(CLI::Range(low, high))->capture_default_str();
  }
  void choice(const std::string& name, std::string& value, const std::vector<std::string>& choices,
              const std::string& help) override {
    app_.add_option(flags(name), value, help)->check(CLI::IsMember(choices))->capture_default_str();
  }
  void list(const std::string& name, std::vector<std::string>& values, const std::string& help) override {
    app_.add_option(flags(name), values, help)->allow_extra_args(false);
  }
  void flag(const std::string& name, bool& value, const std::string& help) override {
    app_.add_flag(flags(name), value, help);
  }
  void positional(const std::string& name, std::string& value, bool required,
                  const std::string& help) override {
    app_.add_option(name, value, help)->required(required);
  }
  void positionals(const std::string& name, std::vector<std::string>& values,
                   const std::string& help) override {
    app_.add_option(name, values, help);
  }

 private:
  // "epochs" is --epochs; "-o,--output" stays as it is.
  static std::string flags(const std::string& name) { return name.starts_with('-') ? name : "--" + name; }
  CLI::App& app_;
};

void declare_common(CLI::App& app, CommonOptions& common) {
  CLI::Option_group* group = app.add_option_group("Common");
  group->add_option("--device", common.device, "where to compute")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  group->add_option("--threads", common.threads, "threads of the CPU backend, 0 = all cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  group->add_flag("--json", common.json, "print one JSON object on stdout, everything else on stderr");
  group->add_flag("--quiet", common.quiet, "no progress");
  group->add_flag("--sync", common.sync,
                  "wait after every op and name the one that failed (slow; same as VQLAB_SYNC=1)");
}

int report(const Error& error, bool json) {
  std::fprintf(stderr, "error: %s (%s)\nhint: %s\n", error.what(), error.where().c_str(),
               error.hint().c_str());
  if (json) {
    Json object = Json::object();
    Json& e = object["error"];
    e["what"] = error.what();
    e["where"] = error.where();
    e["hint"] = error.hint();
    e["code"] = int64_t(error.kind());
    std::printf("%s\n", object.dump().c_str());
  }
  return int(error.kind());
}

// The nearest command is what the user of an unknown one wants to hear.
Error usage_error(const CLI::ParseError& error, int argc, char** argv) {
  std::vector<std::string_view> names;
  for (const CommandEntry* entry : commands()) names.push_back(entry->name);
  const std::string_view first = argc > 1 ? argv[1] : "";
  if (std::find(names.begin(), names.end(), first) != names.end())
    return Error(ErrorKind::usage, error.what(), fmt::format("`vqlab {} --help` lists the options", first),
                 "command line");
  if (first.empty() || first.starts_with('-'))
    return Error(ErrorKind::usage, error.what(), "`vqlab --help` lists the commands", "command line");
  const std::string near = nearest_name(first, names);
  return Error(
      ErrorKind::usage, fmt::format("unknown command {}", first),
      fmt::format("{}the commands are {}", near.empty() ? "" : fmt::format("did you mean `vqlab {}`? ", near),
                  fmt::join(names, ", ")),
      "command line");
}

int run_program(int argc, char** argv) {
  CLI::App app("vqlab: vector-quantized autoencoders and the kernels of their quantizer");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("vqlab ") + version());
  CommonOptions common;
  for (int i = 0; i < argc; ++i) common.command_line += fmt::format("{}{}", i ? " " : "", argv[i]);
  std::vector<std::pair<CLI::App*, std::unique_ptr<Command>>> list;
  for (const CommandEntry* entry : commands()) {
    CLI::App* sub = app.add_subcommand(std::string(entry->name), std::string(entry->summary));
    list.emplace_back(sub, entry->make());
    CliOptions options(*sub);
    list.back().second->declare(options);
    declare_common(*sub, common);
  }
  const auto wants_json = [&] {
    return std::any_of(argv, argv + argc, [](const char* a) { return std::string_view(a) == "--json"; });
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return report(usage_error(error, argc, argv), wants_json());
  }
  for (const auto& [sub, command] : list) {
    if (!sub->parsed()) continue;
    common.device_given = sub->count("--device") > 0;
    common.threads_given = sub->count("--threads") > 0;
    if (common.sync) setenv("VQLAB_SYNC", "1", 1);  // read at the first launch
    try {
      const CommandResult result = command->run(common);
      if (common.json) std::printf("%s\n", result.json.dump().c_str());
      if (std::fflush(stdout) != 0)
        throw Error(ErrorKind::resources, "cannot write the output", "free some disk space", "stdout");
      return result.exit_code;
    } catch (const Error& error) {
      return report(error, common.json);
    } catch (const std::filesystem::filesystem_error& error) {
      const bool full = error.code() == std::errc::no_space_on_device;
      return report(
          Error(full ? ErrorKind::resources : ErrorKind::usage, error.code().message(),
                full ? "free some disk space" : "check the path and its permissions", error.path1().string()),
          common.json);
    } catch (const std::bad_alloc&) {
      return report(
          Error(ErrorKind::resources, "out of memory", "use a smaller batch, model or data set", "host"),
          common.json);
    } catch (const std::exception& error) {
      return report(Error(ErrorKind::failed, error.what(), "this is a defect in vqlab"), common.json);
    }
  }
  return 0;
}

}  // namespace
}  // namespace vqlab

int main(int argc, char** argv) {
  std::signal(SIGXFSZ,
              SIG_IGN);  // a file size limit is then an error of write, with its message and exit code
  return vqlab::run_program(argc, argv);
}
