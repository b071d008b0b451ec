#include "trust.hpp"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>

#include "io/file.hpp"
#include "io/json.hpp"
#include "kernels/core/check.hpp"
#include "runtime.hpp"

namespace vqlab {
namespace {

constexpr double kSelfTestSeconds = 60.0;

std::string last_line(std::string text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

// The output of the child up to its end; false if that did not come in time.
bool read_until(int descriptor, double seconds, std::string& output) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd wanted{descriptor, POLLIN, 0};
    if (left <= 0) return false;
    if (poll(&wanted, 1, int(left)) <= 0) continue;
    char part[4096];
    const ssize_t count = read(descriptor, part, sizeof part);
    if (count == 0) return true;
    if (count > 0) output.append(part, size_t(count));
  }
}

int find_build_id(dl_phdr_info* image, size_t, void* result) {  // the first image is the program
  for (int i = 0; i < image->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = image->dlpi_phdr[i];
    if (header.p_type != PT_NOTE) continue;
    const auto* at = reinterpret_cast<const char*>(image->dlpi_addr + header.p_vaddr);
    for (const char* end = at + header.p_memsz; at + sizeof(ElfW(Nhdr)) <= end;) {
      ElfW(Nhdr) note;
      std::memcpy(&note, at, sizeof note);
      const char* name = at + sizeof note;
      const char* bytes = name + (note.n_namesz + 3) / 4 * 4;
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0) {
        for (unsigned b = 0; b < 8 && b < note.n_descsz; ++b)
          *static_cast<std::string*>(result) += fmt::format("{:02x}", static_cast<unsigned char>(bytes[b]));
        return 1;
      }
      at = bytes + (note.n_descsz + 3) / 4 * 4;
    }
  }
  return 1;
}

}  // namespace

ChildEnd run_child(const std::vector<std::string>& command, double seconds) {
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {.words = "no pipe for its self-test"};
  const pid_t child = fork();
  if (child < 0) return {.words = "no process for its self-test"};
  if (child == 0) {
    setpgid(0, 0);
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  close(ends[1]);
  std::string output;
  const bool ended = read_until(ends[0], seconds, output);
  close(ends[0]);
  if (!ended) kill(-child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!ended) return {.words = fmt::format("no answer within {} s", seconds)};
  if (WIFSIGNALED(status))
    return {.words = fmt::format("ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))};
  const std::string words = last_line(output);
  return {WEXITSTATUS(status), words.empty() ? fmt::format("exit code {}", WEXITSTATUS(status)) : words};
}

Verdict verdict_of(const ChildEnd& end) {
  if (end.exit_code == 0) return {.passed = true};
  const bool about_the_variant = end.exit_code < 0 || end.exit_code == int(ErrorKind::verification);
  return {.reason = end.words, .lasting = about_the_variant};
}

std::string build_id() {
  std::string id;
  dl_iterate_phdr(find_build_id, &id);
  return id.empty() ? "unknown" : id;
}

std::string cache_folder() {
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (cache != nullptr && *cache == '/') return std::string(cache) + "/vqlab";
  return home != nullptr && *home != 0 ? std::string(home) + "/.cache/vqlab" : "";
}

Trust::Trust(std::string key, std::string folder, SelfTest test)
    : key_(std::move(key)), test_(std::move(test)) {
  if (!folder.empty()) path_ = fmt::format("{}/trust-{}.json", folder, xxh3_hex(key_));
  load();
}

const Verdict& Trust::verdict(std::string_view op, std::string_view variant) {
  const std::string name = fmt::format("{} {}", op, variant);
  const auto found = verdicts_.find(name);
  if (found != verdicts_.end()) return found->second;
  const Verdict& verdict = verdicts_[name] = test_(op, variant);
  if (verdict.lasting) store();
  return verdict;
}

void Trust::load() {
  if (path_.empty() || !std::filesystem::exists(path_)) return;
  try {
    const Json json = parse_json(read_file(path_, 1 << 20), path_);
    if (json.at("key").as_string() != key_) return;
    const Json& verdicts = json.at("verdicts");
    for (const auto& [name, entry] : verdicts.members())
      verdicts_[name] = {entry.as_string().empty(), entry.as_string()};
  } catch (const Error& error) {
    verdicts_.clear();
    note_ = fmt::format("verdicts on kernels are taken anew: {}", error.what());
  }
}

void Trust::store() {
  if (path_.empty()) return;
  try {
    Json json = Json::object();
    json["key"] = key_;
    json["verdicts"] = Json::object();
    for (const auto& [name, verdict] : verdicts_)
      if (verdict.lasting) json["verdicts"][name] = verdict.reason;
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    const std::string written = fmt::format("{}.{}", path_, getpid());
    write_file_durably(written, json.dump(2) + "\n");
    rename_durably(written, path_);
  } catch (const std::exception& error) {
    note_ = fmt::format("verdicts on kernels are not kept: {}", error.what());
  }
}

std::unique_ptr<Trust> trust_of_this_program(const std::string& device_choice) {
  if (device_choice == "cpu" || !cuda_problem().empty()) return nullptr;
  const auto test = [](std::string_view op, std::string_view variant) {
    const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
    return verdict_of(run_child(
        {program, "self-test", std::string(op), std::string(variant), "--device", "cuda"}, kSelfTestSeconds));
  };
  return std::make_unique<Trust>(fmt::format("{}, build {}", cuda_devices().at(0), build_id()),
                                 cache_folder(), test);
}

}  // namespace vqlab
