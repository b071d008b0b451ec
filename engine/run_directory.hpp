// RUN/: config.toml, command.txt, env.json, run.lock, metrics.jsonl, ckpt/, samples/. One writer at a time.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "config.hpp"
#include "io/json.hpp"

namespace vqlab {

enum class RunAccess {
  create,   // must not exist, or be empty
  replace,  // an existing run directory is removed first
  resume,   // must be a run directory
};

class RunDirectory {
 public:
  // Creates or opens the directory and takes its lock, which the kernel drops when the process dies. Throws
  // Error(usage) if it exists (create), is not a run (replace, resume) or cannot be written; Error(locked) if
  // another process has it.
  RunDirectory(const std::string& path, RunAccess access);

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> lock_;
};

// runs/<name>-<yyyymmdd-hhmmss>-<4 hex>
std::string default_run_path(const std::string& name);

// The config of a run, with overrides as in load_config. Throws Error(usage) if the directory is not a run.
Config load_run_config(const std::string& run, const std::vector<std::string>& overrides = {});

}  // namespace vqlab
