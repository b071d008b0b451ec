#include "run_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <set>

#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(ErrorKind kind, const std::string& what, const std::string& hint,
                       const std::string& where) {
  throw Error(kind, what, hint, where);
}

bool is_run(const fs::path& path) { return fs::is_regular_file(path / "config.toml"); }

// What a run leaves that was killed before its first step: files of ours alone and no checkpoint but that of
// step 0.
bool is_half_made(const fs::path& path) {
  if (is_run(path) || !fs::exists(path / "run.lock")) return false;
  const std::set<std::string> ours = {"run.lock",        "command.txt", "env.json", "metrics.jsonl",
                                      "config.toml.tmp", "ckpt",        "samples"};
  for (const auto& entry : fs::directory_iterator(path))
    if (!ours.contains(entry.path().filename().string())) return false;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path / "ckpt", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name != "step-00000000") return false;
  }
  return true;
}

void prepare(const fs::path& path, RunAccess access) {
  std::error_code error;
  const bool exists = fs::exists(path, error);
  if (access == RunAccess::resume) {
    if (!is_run(path))
      fail(ErrorKind::usage, "this is not a run directory (it has no config.toml)",
           "pass the directory of an earlier `vqlab train`", path.string());
    return;
  }
  if (exists && !fs::is_directory(path))
    fail(ErrorKind::usage, "the run directory exists and is a file", "choose another --run", path.string());
  if (exists && !fs::is_empty(path, error) && !is_half_made(path)) {
    if (access == RunAccess::create)
      fail(ErrorKind::usage, "the run directory exists already",
           "choose another --run, continue with --resume, or replace it with --force", path.string());
    if (!is_run(path))
      fail(ErrorKind::usage,
           "--force replaces run directories only, and this is none (it has no config.toml)",
           "choose another --run", path.string());
  }
  if (!exists && (!fs::create_directories(path, error) || error))
    fail(error == std::errc::no_space_on_device ? ErrorKind::resources : ErrorKind::usage,
         "cannot create the run directory: " + error.message(), "choose a --run in a writable place",
         path.string());
}

std::FILE* take_lock(const std::string& path) {
  const auto unwritable = [&](int code) {
    fail(code == ENOSPC ? ErrorKind::resources : ErrorKind::usage,
         std::string("cannot write in the run directory: ") + std::strerror(code),
         "free some disk space, or choose a --run in a writable place", path);
  };
  const int file = open((path + "/run.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  std::FILE* lock = file < 0 ? nullptr : fdopen(file, "r+");
  if (lock == nullptr) unwritable(errno);
  if (flock(fileno(lock), LOCK_EX | LOCK_NB) != 0) {
    char owner[128] = {};
    const size_t length = std::fread(owner, 1, sizeof owner - 1, lock);
    std::fclose(lock);
    fail(ErrorKind::locked,
         fmt::format("the run directory is in use by {}", length > 0 ? owner : "another process"),
         "wait for that process or stop it, or choose another --run", path);
  }
  char host[64] = {};
  gethostname(host, sizeof host - 1);
  if (ftruncate(fileno(lock), 0) != 0 ||
      std::fputs(fmt::format("process {} on {}", getpid(), host).c_str(), lock) < 0 ||
      std::fflush(lock) != 0) {
    const int code = errno;
    std::fclose(lock);
    unwritable(code);
  }
  return lock;
}

}  // namespace

RunDirectory::RunDirectory(const std::string& path, RunAccess access) : path_(path) {
  // A run in progress is "in use", not "exists already".
  if (fs::exists(path_ + "/run.lock")) lock_.reset(take_lock(path_));
  prepare(path_, access);
  if (!lock_) {
    lock_.reset(take_lock(path_));
    prepare(path_, access);  // another process may have finished a run in between
  }
  if (access == RunAccess::resume) return;
  for (const auto& entry : fs::directory_iterator(path_))  // the lock stays: it is held
    if (entry.path().filename() != "run.lock") fs::remove_all(entry.path());
}

std::string default_run_path(const std::string& name) {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm local{};
  localtime_r(&seconds, &local);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &local);
  const auto ticks = uint64_t(now.time_since_epoch().count()) ^ uint64_t(getpid()) << 20;
  return fmt::format("runs/{}-{}-{:04x}", name, stamp, (ticks * 0x9E3779B97F4A7C15u) >> 48);
}

Config load_run_config(const std::string& run, const std::vector<std::string>& overrides) {
  if (!fs::exists(run))
    fail(ErrorKind::usage, "there is no such run directory",
         "pass the directory that `vqlab train` has written", run);
  if (!is_run(run))
    fail(ErrorKind::usage, "this is not a run directory (it has no config.toml)",
         "pass the directory that `vqlab train` has written", run);
  return load_config(run + "/config.toml", overrides);
}

}  // namespace vqlab
