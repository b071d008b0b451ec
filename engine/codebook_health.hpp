// What is wrong with a trained codebook: rules over a few measured numbers, each with the one setting to
// change.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"

namespace vqlab {

// What a log line of training says of the codebook; each number as in CodebookHealth.
struct CodebookLine {
  int64_t step = 0, used = 0, dead = 0, replaced = 0;  // replaced: in this step
  double perplexity = 0.0, age = 0.0, norm = 0.0, drift = 0.0;
};

struct CodebookSummary {
  Config config{};
  int64_t latents_per_image = 0, step = 0;
  // Of the checkpoint: `used` in the last batch, the others by the averaged counts. Rare codes have less than
  // a tenth of the mean count, dead ones less than quantizer.restart_threshold of it.
  int64_t size = 0, used = 0, dead = 0, rare = 0;
  double perplexity = 0.0, age = 0.0, norm = 0.0;
  std::vector<CodebookLine> lines{};  // of metrics.jsonl, up to the checkpoint

  int64_t latents_per_step() const { return latents_per_image * config.train.batch_size; }
};

// Null for a model without codes or whose codebook has not learnt yet; why_no_codebook() says which.
std::optional<CodebookSummary> summarise_codebook(const std::string& run, const Config& config,
                                                  const Checkpoint& checkpoint);
std::string why_no_codebook(const Checkpoint& checkpoint);

// The lines that tell of a codebook, up to a step. A killed run may leave half a line: nothing from there on.
std::vector<CodebookLine> read_codebook_lines(const std::string& path, int64_t last_step);

struct HealthRule {
  std::string_view name;
  bool (*fires)(const CodebookSummary& s);
  std::string (*what)(const CodebookSummary& s);     // a sentence with the numbers
  std::string (*setting)(const CodebookSummary& s);  // "key = value"
};
std::span<const HealthRule> health_rules();

struct HealthFinding {
  std::string rule, what, setting;
};
std::vector<HealthFinding> judge_codebook(const CodebookSummary& s);

}  // namespace vqlab
