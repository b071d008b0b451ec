// The commands of the program: one file each, listed in commands.def.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/json.hpp"

namespace vqlab {

// Declares the options of one command; a thin face of the command line parser.
class Options {
 public:
  virtual ~Options() = default;
  // `--name VALUE`, the default being the value that the variable has. Ranges are inclusive.
  virtual void option(const std::string& name, std::string& value, const std::string& help) = 0;
  virtual void option(const std::string& name, int64_t& value, int64_t low, int64_t high,
                      const std::string& help) = 0;
  virtual void choice(const std::string& name, std::string& value, const std::vector<std::string>& choices,
                      const std::string& help) = 0;
  // Repeatable `--name VALUE`.
  virtual void list(const std::string& name, std::vector<std::string>& values, const std::string& help) = 0;
  virtual void flag(const std::string& name, bool& value, const std::string& help) = 0;
  virtual void positional(const std::string& name, std::string& value, bool required,
                          const std::string& help) = 0;
  virtual void positionals(const std::string& name, std::vector<std::string>& values,
                           const std::string& help) = 0;
};

// What every command takes.
struct CommonOptions {
  std::string device = "auto";
  int64_t threads = 0;  // 0 = all cores
  bool device_given = false, threads_given = false;
  bool json = false;         // one object on stdout, logs on stderr
  bool quiet = false;        // no progress
  bool sync = false;         // wait after each op; the CPU always does
  std::string command_line;  // as typed
};

// A command's result: the object that --json prints, and the exit code.
struct CommandResult {
  Json json;
  int exit_code = 0;
};

class Command {
 public:
  virtual ~Command() = default;
  virtual void declare(Options& options) = 0;
  // Prints for people on stdout unless common.json; progress and warnings go to stderr. Throws Error.
  virtual CommandResult run(const CommonOptions& common) = 0;
};

struct CommandEntry {
  std::string_view name, summary;
  std::unique_ptr<Command> (*make)();
};
std::span<const CommandEntry* const> commands();

}  // namespace vqlab
