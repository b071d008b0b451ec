// What `compare --tune` found fastest on this machine, by op and shape: what the engine tries first when a
// run leaves the choice of a kernel to it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "io/json.hpp"

namespace vqlab {

struct TunedChoice {
  std::string op;  // of choose_kernels
  VariantShape shape;
  int64_t threads = 0;  // of the CPU backend; 0 on a GPU
  std::string variant;
  double ms = 0.0;             // median
  std::string otherwise = "";  // the first eligible of the table, which would run without the measurement

  Json to_json() const;
};

// The fastest variant of the op that `op` decides, at one shape, results in the order of its table. Eligible
// are those that equal the definition bit for bit, gave equal bits twice, and are trusted, so that a choice
// changes no result; of those within 2 % of the fastest the first is taken. None if nothing eligible was
// timed.
std::optional<TunedChoice> fastest_variant(const VariantOp& op, const std::vector<VariantResult>& results,
                                           const std::function<bool(std::string_view variant)>& trusted);

class Tuning {
 public:
  // `key` says where the choices hold; they are kept in a file of the folder, "" for none. A file that cannot
  // be read is as none, and note() says so.
  Tuning(std::string key, const std::string& folder);

  // The variant's name, or "" where nothing was measured by as many threads.
  std::string variant(std::string_view op, const VariantShape& shape, int64_t threads) const;
  const std::vector<TunedChoice>& choices() const { return choices_; }
  const std::string& note() const { return note_; }
  const std::string& path() const { return path_; }

  // In the place of an earlier choice for the same. Throws what writing a file throws.
  void keep(const std::vector<TunedChoice>& choices);

 private:
  std::string key_, path_, note_;
  std::vector<TunedChoice> choices_;
};

// Choices hold for this model of GPU with its driver, or this processor, and this build of the program.
std::string tuning_key(const Runtime& runtime);

// Of the CPU backend, 0 on a GPU.
int64_t tuned_threads(Device device);

}  // namespace vqlab
