// Which way of a device's library computes a convolution: the engine chooses, the op carries the choice.
#pragma once

#include <compare>
#include <vector>

#include "conv_problem.hpp"

namespace vqlab {

// One setting of an engine of the library, such as the number of its tile.
struct ConvKnob {
  int64_t type, value;
  auto operator<=>(const ConvKnob&) const = default;
};

// An engine of the library with its settings. By default the one of the rule (conv_plans.hpp), which the
// library's version and the model of the GPU decide.
struct ConvChoice {
  bool fused = false;   // the library does what problem.fusion wants, else kernels of ours do
  int64_t engine = -1;  // -1: by the rule, not fused
  std::vector<ConvKnob> knobs;

  auto operator<=>(const ConvChoice&) const = default;
  std::string text() const;  // "engine 44, 2=3 14=0, fused"
};

// The next four ask the device's library. In a problem, fusion is what the op wants, fused or not.

// "cuDNN 9.19.0"
std::string conv_library();
// The rule's choice, by its engine and knobs. Throws Error(failed) if there is none.
ConvChoice choose_by_rule(const ConvProblem& problem);
// What may be measured, the rule's choice first: others that serve, fused ones among them. Those that have to
// be compiled at run time, in seconds each, only if asked for.
std::vector<ConvChoice> list_choices(const ConvProblem& problem, bool compile);
// Makes its plan, which the op then finds. Throws Error(failed) if the library cannot.
void prepare_choice(const ConvProblem& problem, const ConvChoice& choice);

}  // namespace vqlab
