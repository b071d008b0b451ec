// Which way of the GPU's library computes each convolution of a run. Chosen once, by rule or by measurement,
// and kept in the run's checkpoints: a resumed run uses the same and has the same bits.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/json.hpp"
#include "kernels/conv/conv_choice.hpp"
#include "runtime.hpp"

namespace vqlab {

class Model;

struct ConvBook {
  struct Entry {
    std::string layer;    // the first that has it
    std::string problem;  // ConvProblem::text()
    ConvChoice choice{};
    bool by_rule = true;
    double ms = 0.0, rule_ms = 0.0;  // measured, of the choice and of the rule's; 0: not measured
  };
  std::string device{}, library{};  // "NVIDIA H200", "cuDNN 9.19.0"; "": no GPU has chosen yet
  std::vector<Entry> entries{};

  // "convolution plans: 3 of 21 other than the rule's, 2 of them fused (cuDNN 9.19.0)"
  std::string summary() const;
  Json to_json() const;
  // Throws Error(data) if it is malformed.
  static ConvBook from_json(const Json& json);
};

// Milliseconds of each call, which enqueues on the compute stream; taken in turns.
using CallTimer = std::function<std::vector<double>(const std::vector<std::function<void()>>&)>;
// With the GPU's events, warm caches and a tenth of a second at most for each call.
CallTimer event_timer(const Runtime& runtime);

// rule: see kernels/conv/conv_plans.hpp. measured: of what the library offers precompiled, fused or not, the
// fastest by the timer, if its results agree with the rule's on random data and on NaN and it is 5 % faster
// at least. compiled: also what has to be compiled for seconds.
enum class ConvChoosing { rule, measured, compiled };
ConvChoosing parse_choosing(const std::string& name);

// Chooses for all convolutions of an allocated model on a GPU, makes the plans and gives the choices to the
// layers. Measuring takes the memory of one layer more, for that time.
ConvBook choose_convolutions(Model& model, const Runtime& runtime, ConvChoosing how, const CallTimer& timer);

// Gives the layers the choices of an earlier process on the same model of GPU. Throws Error(checkpoint), with
// the layer, if one is missing or the library cannot make it any more.
void use_convolutions(Model& model, const ConvBook& book);

// "" if the library is that of the book, else one line that says so: the same engines may have other bits.
std::string library_change(const ConvBook& book);

}  // namespace vqlab
