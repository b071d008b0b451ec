#include "codebook_health.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>

#include "io/json.hpp"
#include "kernels/codebook/fsq.hpp"
#include "vector_quantizer.hpp"

namespace vqlab {
namespace {

bool has_codes(const Checkpoint& checkpoint) {
  return checkpoint.optimiser_file().find("quantize.age") != nullptr;
}

bool waits_for_latents(const Checkpoint& checkpoint) {  // for k-means
  return checkpoint.optimiser_file().find("quantize.first_latents") != nullptr;
}

// ---- what rules ask for ----

double share(int64_t part, int64_t whole) { return double(part) / double(std::max<int64_t>(whole, 1)); }

// The middle one of a line's number over the last quarter of the lines: restarts make single lines jump.
double late(const CodebookSummary& s, double CodebookLine::*number) {
  std::vector<double> values;
  for (size_t i = s.lines.size() * 3 / 4; i < s.lines.size(); ++i) values.push_back(s.lines[i].*number);
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int64_t replaced(const CodebookSummary& s) {
  int64_t sum = 0;
  for (const CodebookLine& line : s.lines) sum += line.replaced;
  return sum;
}

// Of the codebook as it is, over that of the first line.
double norm_growth(const CodebookSummary& s) {
  return s.lines.empty() || s.lines.front().norm <= 0.0 ? 1.0 : s.norm / s.lines.front().norm;
}

bool restarts(const CodebookSummary& s) { return s.config.quantizer.restart_threshold > 0.0; }

// The codes of a grid are given: nothing restarts or moves them.
bool is_grid(const CodebookSummary& s) { return s.config.quantizer.kind == "fsq"; }

std::string coarser_grid(const CodebookSummary& s) {
  std::string levels;
  for (const int64_t level : s.config.quantizer.levels)
    levels += fmt::format("{}{}", levels.empty() ? "" : ", ", std::max<int64_t>(2, level - 1));
  return fmt::format("quantizer.levels = [{}]", levels);
}

// ---- the rules ----

// A code without latents never moves again, and one at a tenth of the mean count is what the default would
// replace: so a single one is worth a word.
bool restart_is_off(const CodebookSummary& s) { return !is_grid(s) && !restarts(s) && s.rare > 0; }

constexpr std::string_view kRestart = "quantizer.restart_threshold = 0.1";

std::string restart_is_off_what(const CodebookSummary& s) {
  return fmt::format(
      "restart is off, and {} of {} codes have less than a tenth of the mean count: they stay dead", s.rare,
      s.size);
}

// Restart takes some steps to replace a code and its count some more to grow, so a few dead codes are there
// in a healthy run (up to 5 % of fmnist-s's 256): a tenth is more than comes by the way.
constexpr double kDeadShare = 0.1;

bool too_many_dead(const CodebookSummary& s) {
  if (is_grid(s)) return share(s.dead, s.size) > kDeadShare;
  return restarts(s) && s.config.quantizer.restart_every > 1 && share(s.dead, s.size) > kDeadShare;
}

std::string too_many_dead_what(const CodebookSummary& s) {
  if (is_grid(s)) return fmt::format("{} of {} codes of the grid have hardly any latents", s.dead, s.size);
  return fmt::format("{} of {} codes are dead, although {} were replaced in the logged steps", s.dead, s.size,
                     replaced(s));
}

// Codes that no latent of a batch can take, whatever the latents are.
bool more_codes_than_latents(const CodebookSummary& s) { return s.size > s.latents_per_step(); }

std::string more_codes_than_latents_what(const CodebookSummary& s) {
  return fmt::format("{} codes compete for the {} latents of a batch", s.size, s.latents_per_step());
}

std::string larger_batch(const CodebookSummary& s) {
  const int64_t images = (s.size + s.latents_per_image - 1) / s.latents_per_image;
  return fmt::format("train.batch_size = {}", std::bit_ceil(uint64_t(images)));
}

// exp(entropy) is how many equally used codes would say as much. At a tenth, more than three of the bits of a
// code (log2 10) say nothing.
constexpr double kPerplexityShare = 0.1;

// Steps in which the averaged count of a code without latents falls from the mean to where restart takes it.
// Before, no run has spread its codes (fmnist-s: perplexity 12 at step 100, 172 at 250, of 256).
double steps_to_restart(const CodebookSummary& s) {
  const double threshold = restarts(s) ? s.config.quantizer.restart_threshold : 0.1;
  return std::log(threshold) / std::log(s.config.quantizer.decay);
}

bool collapse(const CodebookSummary& s) {
  return double(s.step) >= steps_to_restart(s) && s.perplexity < kPerplexityShare * double(s.size);
}

std::string collapse_what(const CodebookSummary& s) {
  return fmt::format(
      "few codes carry nearly all latents: perplexity {:.1f} of {} codes, {} of them used in the last batch",
      s.perplexity, s.size, s.used);
}

// Restart first (fmnist-s after an epoch: perplexity 22 without it, 202 with it), then k-means (uniform:
// 176), fewer dimensions (without restart 15 of D 64, 22 of D 8), and at last as many codes as are of use.
std::string against_collapse(const CodebookSummary& s) {
  if (is_grid(s)) return coarser_grid(s);
  if (!restarts(s)) return std::string(kRestart);
  if (s.config.quantizer.initialisation != "kmeans") return "quantizer.initialisation = \"kmeans\"";
  if (s.config.quantizer.dim > 8) return "quantizer.dim = 8";
  return fmt::format("quantizer.codebook_size = {}",
                     std::bit_ceil(uint64_t(std::max(2.0, std::ceil(2.0 * s.perplexity)))));
}

// Of a code's norm in a step: so the code is another one after 100 steps, the memory of the default's
// averages, and the decoder learns what is no more. fmnist-s ends at 0.0005, with decay = 0.5 at 0.023.
constexpr double kLateDrift = 0.01;
constexpr size_t kFewestLines = 8;  // before, restart still spreads the codes

bool drift(const CodebookSummary& s) {
  return s.lines.size() >= kFewestLines && late(s, &CodebookLine::drift) > kLateDrift;
}

std::string drift_what(const CodebookSummary& s) {
  return fmt::format(
      "codes still move by {:.2f} % of their norm in a step at the end of training, {:.2f} % at its start",
      100.0 * late(s, &CodebookLine::drift), 100.0 * s.lines.front().drift);
}

std::string against_drift(const CodebookSummary& s) {
  if (s.config.quantizer.kind != "vq_ema") return "train.schedule = \"cosine\"";
  // A tenth of the step towards the batch's means.
  return fmt::format("quantizer.decay = {:.6g}", 1.0 - 0.1 * (1.0 - s.config.quantizer.decay));
}

// Latents spread from where k-means finds them as the encoder learns: in fmnist-s to 2.9 times the norm in an
// epoch and to 4 times in five. With commitment_weight = 0.01 nothing holds them: 10.6 times in one. Uniform
// codes start near 0, wherever the latents are.
constexpr double kNormGrowth = 8.0;

bool norm_grows(const CodebookSummary& s) {
  return s.config.quantizer.initialisation == "kmeans" && s.lines.size() >= kFewestLines &&
         norm_growth(s) > kNormGrowth;
}

std::string norm_grows_what(const CodebookSummary& s) {
  return fmt::format(
      "the mean norm of the codes grew {:.1f} times, from {:.3g} at step {} to {:.3g}, with "
      "commitment_weight "
      "{:.6g}",
      norm_growth(s), s.lines.front().norm, s.lines.front().step, s.norm, s.config.loss.commitment_weight);
}

std::string heavier_commitment(const CodebookSummary& s) {
  return fmt::format("loss.commitment_weight = {:.6g}",
                     std::max(0.25, 4.0 * s.config.loss.commitment_weight));
}

constexpr HealthRule kRules[] = {
    {"restart-off", restart_is_off, restart_is_off_what,
     [](const CodebookSummary&) { return std::string(kRestart); }},
    {"dead-codes", too_many_dead, too_many_dead_what,
     [](const CodebookSummary& s) { return is_grid(s) ? coarser_grid(s) : "quantizer.restart_every = 1"; }},
    {"more-codes-than-latents", more_codes_than_latents, more_codes_than_latents_what, larger_batch},
    {"collapse", collapse, collapse_what, against_collapse},
    {"drift", drift, drift_what, against_drift},
    {"norm-growth", norm_grows, norm_grows_what, heavier_commitment}};

void read_checkpoint(const Checkpoint& checkpoint, CodebookSummary& s) {
  const std::vector<float> sizes = checkpoint.optimiser_file().floats("quantize.ema.cluster_size");
  const std::vector<int32_t> age = checkpoint.optimiser_file().values<int32_t>("quantize.age");
  const std::vector<float> codes = is_grid(s) ? fsq_codebook(fsq_grid(s.config.quantizer.levels))
                                              : checkpoint.model_file().floats("quantize.embedding.weight");
  s.size = int64_t(sizes.size());
  double total = 0.0;
  for (const float size : sizes) total += double(size);
  const size_t D = codes.size() / sizes.size();
  const double mean = total / double(s.size);
  double entropy = 0.0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    const double p = double(sizes[k]) / total;
    if (p > 0.0) entropy -= p * std::log(p);
    s.used += age[k] == 0;
    s.dead += double(sizes[k]) < s.config.quantizer.restart_threshold * mean;
    s.rare += double(sizes[k]) < 0.1 * mean;
    s.age += double(age[k]) / double(s.size);
    double norm = 0.0;
    for (size_t d = 0; d < D; ++d) norm += double(codes[k * D + d]) * double(codes[k * D + d]);
    s.norm += std::sqrt(norm) / double(s.size);
  }
  s.perplexity = std::exp(entropy);
}

}  // namespace

std::span<const HealthRule> health_rules() { return kRules; }

std::vector<HealthFinding> judge_codebook(const CodebookSummary& s) {
  std::vector<HealthFinding> findings;
  for (const HealthRule& rule : kRules)
    if (rule.fires(s)) findings.push_back({std::string(rule.name), rule.what(s), rule.setting(s)});
  return findings;
}

std::vector<CodebookLine> read_codebook_lines(const std::string& path, int64_t last_step) {
  std::ifstream file(path);
  std::vector<CodebookLine> lines;
  for (std::string text; std::getline(file, text);) try {
      const Json json = parse_json(text, path);
      if (json.find("drift") == nullptr || json.at("step").as_integer() > last_step) continue;
      lines.push_back({.step = json.at("step").as_integer(),
                       .used = json.at("codes_used").as_integer(),
                       .dead = json.at("dead").as_integer(),
                       .replaced = json.at("replaced").as_integer(),
                       .perplexity = json.at("perplexity").as_number(),
                       .age = json.at("age").as_number(),
                       .norm = json.at("norm").as_number(),
                       .drift = json.at("drift").as_number()});
    } catch (const Error&) {
      break;
    }
  return lines;
}

std::string why_no_codebook(const Checkpoint& checkpoint) {
  if (!has_codes(checkpoint)) return "the model is a plain autoencoder, without codes";
  if (waits_for_latents(checkpoint)) return "the codebook still waits for its first latents";
  return "the codebook has not learnt from a batch yet";
}

std::optional<CodebookSummary> summarise_codebook(const std::string& run, const Config& config,
                                                  const Checkpoint& checkpoint) {
  const int64_t step = checkpoint.progress().step;
  if (!has_codes(checkpoint) || waits_for_latents(checkpoint) || step == 0) return std::nullopt;
  const ImageShape& shape = checkpoint.facts().shape;
  CodebookSummary s{.config = config,
                    .latents_per_image = quantizer_shape(config, 1, shape.height, shape.width).N,
                    .step = step};
  read_checkpoint(checkpoint, s);
  s.lines = read_codebook_lines(run + "/metrics.jsonl", step);
  return s;
}

}  // namespace vqlab
