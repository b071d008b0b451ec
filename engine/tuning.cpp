#include "tuning.hpp"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include "environment.hpp"
#include "io/file.hpp"
#include "kernels/core/parallel.hpp"
#include "trust.hpp"

namespace vqlab {
namespace {

constexpr double kAsFast = 1.02;  // within this ratio the order of the table decides, not noise

bool same_place(const TunedChoice& choice, std::string_view op, const VariantShape& shape, int64_t threads) {
  return choice.op == op && choice.shape.text() == shape.text() && choice.threads == threads;
}

TunedChoice choice_from(const Json& json) {
  const Json::Array& sizes = json.at("shape").items();
  if (sizes.size() != 3) throw Error(ErrorKind::data, "a shape is not N,K,D", "measure again");
  return {.op = json.at("op").as_string(),
          .shape = {sizes[0].as_integer(), sizes[1].as_integer(), sizes[2].as_integer()},
          .threads = json.at("threads").as_integer(),
          .variant = json.at("variant").as_string(),
          .ms = json.at("ms").as_number(),
          .otherwise = json.at("otherwise").as_string()};
}

}  // namespace

Json TunedChoice::to_json() const {
  Json json = Json::object();
  json["op"] = op;
  for (const int64_t size : {shape.N, shape.K, shape.D}) json["shape"].push_back(size);
  json["threads"] = threads;
  json["variant"] = variant;
  json["ms"] = ms;
  json["otherwise"] = otherwise;
  return json;
}

std::optional<TunedChoice> fastest_variant(const VariantOp& op, const std::vector<VariantResult>& results,
                                           const std::function<bool(std::string_view variant)>& trusted) {
  std::vector<const VariantResult*> eligible;
  double least = std::numeric_limits<double>::infinity();
  for (const VariantResult& result : results) {
    if (!result.variant.exact || result.status != "ok" || !result.timing || !result.deterministic ||
        !trusted(result.variant.name))
      continue;
    eligible.push_back(&result);
    least = std::min(least, result.timing->median_ms);
  }
  for (const VariantResult* result : eligible)
    if (result->timing->median_ms <= kAsFast * least)
      return TunedChoice{.op = std::string(op.decides),
                         .shape = result->shape,
                         .threads = tuned_threads(result->variant.device),
                         .variant = std::string(result->variant.name),
                         .ms = result->timing->median_ms,
                         .otherwise = std::string(eligible.front()->variant.name)};
  return std::nullopt;
}

Tuning::Tuning(std::string key, const std::string& folder) : key_(std::move(key)) {
  if (folder.empty()) return;
  path_ = fmt::format("{}/tuning-{}.json", folder, xxh3_hex(key_));
  if (!std::filesystem::exists(path_)) return;
  try {
    const Json json = parse_json(read_file(path_, 1 << 20), path_);
    if (json.at("key").as_string() != key_) return;
    for (const Json& entry : json.at("choices").items()) choices_.push_back(choice_from(entry));
  } catch (const Error& error) {
    choices_.clear();
    note_ = fmt::format("kernels are not chosen by `compare --tune`: {}: {}", path_, error.what());
  }
}

std::string Tuning::variant(std::string_view op, const VariantShape& shape, int64_t threads) const {
  for (const TunedChoice& choice : choices_)
    if (same_place(choice, op, shape, threads)) return choice.variant;
  return "";
}

void Tuning::keep(const std::vector<TunedChoice>& choices) {
  if (path_.empty())
    throw Error(ErrorKind::usage, "there is no place for the choices: neither XDG_CACHE_HOME nor HOME is set",
                "set one of them to a folder that can be written", "--tune");
  for (const TunedChoice& choice : choices) {
    std::erase_if(choices_, [&](const TunedChoice& other) {
      return same_place(other, choice.op, choice.shape, choice.threads);
    });
    choices_.push_back(choice);
  }
  Json json = Json::object();
  json["key"] = key_;
  json["choices"] = Json::array();
  for (const TunedChoice& choice : choices_) json["choices"].push_back(choice.to_json());
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
  const std::string written = fmt::format("{}.{}", path_, getpid());
  write_file_durably(written, json.dump(2) + "\n");
  rename_durably(written, path_);
}

std::string tuning_key(const Runtime& runtime) {
  const std::string machine =
      runtime.device() == Device::cuda ? cuda_devices().at(0) : "cpu " + processor_name();
  return fmt::format("{}, build {}", machine, build_id());
}

int64_t tuned_threads(Device device) { return device == Device::cpu ? worker_count() : 0; }

}  // namespace vqlab
