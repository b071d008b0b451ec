// Trust on first use: a variant of a kernel is used by default on a GPU only after its self-test has passed
// on this model of GPU, with this driver and this build of the program. Most people who build vqlab have
// another GPU than those it was measured on.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace vqlab {

// What a self-test found.
struct Verdict {
  bool passed = false;
  std::string reason{};  // why not
  bool lasting =
      true;  // false: it could not be run (memory, a busy GPU), which says nothing about the variant
};

// How a program ended that was run to its end, or killed where it gave no answer in time.
struct ChildEnd {
  int exit_code = -1;   // -1: by a signal, or killed
  std::string words{};  // the last line that it printed, or which signal, or that there was no answer
};
ChildEnd run_child(const std::vector<std::string>& command, double seconds);
// What the end of `vqlab self-test` says of its variant.
Verdict verdict_of(const ChildEnd& end);

// 16 digits that differ between two builds of this program.
std::string build_id();

// $XDG_CACHE_HOME/vqlab or ~/.cache/vqlab; "" where neither is known.
std::string cache_folder();

class Trust {
 public:
  using SelfTest = std::function<Verdict(std::string_view op, std::string_view variant)>;

  // `key` says where verdicts hold; they are kept in a file of the folder, "" for none. A file that cannot be
  // read is as none, and a folder that cannot be written only means that tests are repeated: note() says so.
  Trust(std::string key, std::string folder, SelfTest test);

  // Tests if that has not been done. What is not lasting is kept for this process only.
  const Verdict& verdict(std::string_view op, std::string_view variant);
  const std::string& note() const { return note_; }

 private:
  void load();
  void store();

  std::string key_, path_, note_;
  SelfTest test_;
  std::map<std::string, Verdict> verdicts_;  // by "op variant"
};

// Tests by `vqlab self-test` in a process of its own, since a kernel that hangs or faults takes its process
// along, and keeps verdicts in the cache_folder(). Null where `device_choice` (auto, cpu, cuda) and this
// machine leave only the CPU.
std::unique_ptr<Trust> trust_of_this_program(const std::string& device_choice);

}  // namespace vqlab
