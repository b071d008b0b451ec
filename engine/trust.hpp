// Trust on first use: a variant of a kernel is used by default on a GPU only after its self-test has passed
// on this model of GPU, with this driver and this build of the program. Most people who build vqlab have
// another GPU than those it was measured on.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime.hpp"

namespace vqlab {

// What a self-test found.
struct Verdict {
  bool passed = false;
  std::string reason;  // why not
};

// Runs a program to its end and takes what it prints. "" if it exits with 0, else one line: its last words,
// the signal that ended it, or that it gave no answer in time; then it has been killed.
std::string run_child(const std::vector<std::string>& command, double seconds);

// 16 digits that differ between two builds of this program.
std::string build_id();

class Trust {
 public:
  // "" if the variant passes.
  using SelfTest = std::function<std::string(std::string_view op, std::string_view variant)>;

  // `key` says where verdicts hold; they are kept in a file of the folder, "" for none. A file that cannot be
  // read is as none, and a folder that cannot be written only means that tests are repeated: note() says so.
  Trust(std::string key, std::string folder, SelfTest test);

  // Tests if that has not been done.
  const Verdict& verdict(std::string_view op, std::string_view variant);
  // What is known without a test.
  std::optional<Verdict> known(std::string_view op, std::string_view variant) const;
  const std::string& note() const { return note_; }

 private:
  void load();
  void store();

  std::string key_, path_, note_;
  SelfTest test_;
  std::map<std::string, Verdict> verdicts_;  // by "op variant"
};

// Tests by `vqlab self-test` in a process of its own, since a kernel that hangs or faults takes its process
// along, and keeps verdicts under $XDG_CACHE_HOME/vqlab or ~/.cache/vqlab. Null where `device_choice` (auto,
// cpu, cuda) and this machine leave only the CPU.
std::unique_ptr<Trust> trust_of_this_program(const std::string& device_choice);

}  // namespace vqlab
