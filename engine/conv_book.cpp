#include "conv_book.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/core/random.hpp"
#include "measure.hpp"
#include "model.hpp"

namespace vqlab {
namespace {

constexpr double kWorthwhile = 0.95;  // of the rule's time: a choice is for good, and timings are noisy

// One convolution with operands of its own, computed by any choice.
class Trial {
 public:
  Trial(const ConvProblem& problem, const Runtime& runtime)
      : problem_(problem),
        runtime_(runtime),
        large_(nullptr, {problem.batch, problem.large_height, problem.large_width, problem.large_channels}),
        small_(nullptr, {problem.batch, problem.small_height, problem.small_width, problem.small_channels}),
        filter_(nullptr, {problem.small_channels, problem.kernel, problem.kernel, problem.large_channels}) {
    const bool to_small = problem.operation == ConvOperation::fprop;
    geometry_ = {.kind = to_small ? ConvKind::normal : ConvKind::transposed,
                 .kernel = problem.kernel,
                 .stride = problem.stride,
                 .padding = problem.padding};
    input_ = to_small ? large_ : small_;
    output_ = to_small ? small_ : large_;
    terms_ = problem.kernel * problem.kernel * input_[3];
    bias_ = View<float>(nullptr, {output_[3]});
    scratch_ = View<std::byte>(
        nullptr, {conv_scratch_bytes(runtime.device(), geometry_, input_, output_[3], problem.precision)});
    mask_ = output_;
    for (View<float>* part : {&input_, &output_, &filter_, &bias_, &mask_}) allocate(*part);
    allocate(scratch_);
    fill(input_, 1), fill(filter_, 2), fill(bias_, 3), fill(mask_, 4);
  }

  void run(const ConvChoice& choice) const {
    const bool fusible = problem_.fusion != ConvFusion::none;
    if (problem_.fusion == ConvFusion::mask) return run_backward(choice);
    vqlab::run(ConvForwardOp{.output = output_,
                             .input = input_,
                             .weight = filter_,
                             .bias = fusible ? View<const float>(bias_) : View<const float>(),
                             .geometry = geometry_,
                             .activation = problem_.fusion == ConvFusion::bias_relu ? Activation::relu
                                                                                    : Activation::none,
                             .scratch = scratch_,
                             .precision = problem_.precision,
                             .choice = &choice},
               runtime_.compute());
  }
  // The same convolution, asked for as a gradient.
  void run_backward(const ConvChoice& choice) const {
    ConvGeometry geometry = geometry_;
    geometry.kind = geometry.kind == ConvKind::normal ? ConvKind::transposed : ConvKind::normal;
    vqlab::run(ConvBackwardDataOp{.d_input = output_,
                                  .d_output = input_,
                                  .weight = filter_,
                                  .geometry = geometry,
                                  .scratch = scratch_,
                                  .precision = problem_.precision,
                                  .choice = &choice,
                                  .mask = mask_},
               runtime_.compute());
  }
  std::vector<float> result(const ConvChoice& choice) const {
    run(choice);
    return to_host(View<const float>(output_), runtime_);
  }
  // From now on bias and mask are so large that nothing is cut off, where an error would not be seen.
  void raise() const {
    for (const View<float>& part : {bias_, mask_}) {
      std::vector<float> values = to_host(View<const float>(part), runtime_);
      for (float& value : values) value += float(largest_sum()) + 1.0f;
      runtime_.upload(part.data, values.data(), part.bytes(), runtime_.compute());
      runtime_.synchronize(runtime_.compute());
    }
  }
  // From now on one value in the middle of the input is NaN.
  void plant_nan() const {
    const float nan = std::nanf("");
    runtime_.upload(input_.data + input_.size() / 2, &nan, sizeof nan, runtime_.compute());
    runtime_.synchronize(runtime_.compute());
  }
  // By how much two right results of numbers in [-1, 1] may differ: sums of `terms` products in two orders,
  // as the convolutions' tests derive it; in tf32 libraries round or cut off the operands, 2^-10 of each
  // product; in bf16 the result is rounded, before or after the bias, to one neighbour or the next.
  double tolerance() const {
    const double terms = double(terms_);
    const double size = 2.0 * largest_sum() + 2.0, sum = 1.2e-7 * (8.0 * (terms + 4.0) + size);
    switch (problem_.precision) {
      case Precision::tf32:
        return sum + std::ldexp(size, -9);
      case Precision::bf16:
        return sum + std::ldexp(size, -6);
      case Precision::fp32:
        break;
    }
    return sum;
  }

 private:
  // Six standard deviations, of products of two uniform numbers.
  double largest_sum() const { return 6.0 * std::sqrt(double(terms_)) / 3.0; }
  template <class T>
  void allocate(View<T>& part) {
    blocks_.push_back(runtime_.allocate(part.bytes(), MemoryKind::device, "trial of a convolution"));
    part.data = reinterpret_cast<T*>(blocks_.back().get());
  }
  // Uniform in [-1, 1].
  void fill(const View<float>& part, uint64_t seed) const {
    std::vector<float> values(size_t(part.size()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = 2.0f * random_uniform({.seed = seed}, i) - 1.0f;
    runtime_.upload(part.data, values.data(), part.bytes(), runtime_.compute());
    runtime_.synchronize(runtime_.compute());
  }

  const ConvProblem problem_;
  const Runtime& runtime_;
  View<float> large_, small_, filter_, input_, output_, bias_, mask_;
  View<std::byte> scratch_;
  ConvGeometry geometry_;
  int64_t terms_ = 0;  // of a sum
  std::vector<Block> blocks_;
};

// NaN only where the other has it too.
bool agree(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) != std::isnan(b[i])) return false;
    if (!std::isnan(a[i]) && !(std::abs(double(a[i]) - double(b[i])) <= tolerance)) return false;
  }
  return true;
}

// Those that can be made and give the results of the first.
std::vector<ConvChoice> verified(const ConvProblem& problem, const std::vector<ConvChoice>& choices,
                                 const Trial& trial) {
  std::vector<ConvChoice> good;
  for (const ConvChoice& choice : choices) try {
      prepare_choice(problem, choice);
      good.push_back(choice);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::failed || choice == choices.front()) throw;
    }
  for (int data = 0; data < 3; ++data) {
    if (data == 1) trial.raise();
    if (data == 2) trial.plant_nan();
    const std::vector<float> rule = trial.result(choices.front());
    std::erase_if(good, [&](const ConvChoice& choice) {
      return !agree(rule, trial.result(choice), trial.tolerance());
    });
  }
  return good;
}

ConvBook::Entry choose(const LayerConvolution& layer, const Runtime& runtime, ConvChoosing how,
                       const CallTimer& timer) {
  ConvBook::Entry entry{.layer = layer.layer, .problem = layer.problem.text()};
  if (how == ConvChoosing::rule || layer.problem.operation == ConvOperation::wgrad) {
    entry.choice = choose_by_rule(layer.problem);
    return entry;
  }
  const Trial trial(layer.problem, runtime);
  const std::vector<ConvChoice> good =
      verified(layer.problem, list_choices(layer.problem, how == ConvChoosing::compiled), trial);
  if (good.empty())
    throw Error(ErrorKind::failed, fmt::format("{}: {} differs from itself", entry.layer, entry.problem),
                "this is a defect of the GPU or of its library: run vqlab doctor", entry.layer);
  std::vector<std::function<void()>> calls;
  for (const ConvChoice& choice : good) calls.emplace_back([&trial, &choice] { trial.run(choice); });
  const std::vector<double> times = timer(calls);
  runtime.synchronize(runtime.compute());  // before the trial's memory goes
  const size_t best = size_t(std::min_element(times.begin(), times.end()) - times.begin());
  const size_t chosen = times[best] <= kWorthwhile * times[0] ? best : 0;
  entry.choice = good[chosen], entry.ms = times[chosen], entry.rule_ms = times[0];
  entry.by_rule = chosen == 0;
  return entry;
}

}  // namespace

std::string ConvBook::summary() const {
  const auto other = std::ranges::count_if(entries, [](const Entry& e) { return !e.by_rule; });
  const auto fused = std::ranges::count_if(entries, [](const Entry& e) { return e.choice.fused; });
  return fmt::format("convolution plans: {} of {} other than the rule's, {} of them fused ({})", other,
                     entries.size(), fused, library);
}

Json ConvBook::to_json() const {
  Json json = Json::object();
  json["device"] = device;
  json["library"] = library;
  json["convolutions"] = Json::array();
  for (const Entry& e : entries) {
    Json line = Json::object();
    line["layer"] = e.layer;
    line["problem"] = e.problem;
    line["fused"] = e.choice.fused;
    line["engine"] = e.choice.engine;
    line["by_rule"] = e.by_rule;
    line["knobs"] = Json::array();
    for (const ConvKnob& knob : e.choice.knobs) line["knobs"].push_back(Json::Array{knob.type, knob.value});
    if (e.rule_ms > 0.0) line["ms"] = e.ms, line["rule_ms"] = e.rule_ms;
    json["convolutions"].push_back(std::move(line));
  }
  return json;
}

ConvBook ConvBook::from_json(const Json& json) {
  ConvBook book{.device = json.at("device").as_string(), .library = json.at("library").as_string()};
  for (const Json& line : json.at("convolutions").items()) {
    Entry& e = book.entries.emplace_back();
    e.layer = line.at("layer").as_string();
    e.problem = line.at("problem").as_string();
    e.choice.fused = line.at("fused").as_bool();
    e.choice.engine = line.at("engine").as_integer();
    e.by_rule = line.at("by_rule").as_bool();
    for (const Json& knob : line.at("knobs").items()) {
      const Json::Array& pair = knob.items();
      if (pair.size() != 2)
        throw Error(ErrorKind::data, "a knob is no pair", "restore the checkpoint", e.layer);
      e.choice.knobs.push_back({pair[0].as_integer(), pair[1].as_integer()});
    }
    if (const Json* ms = line.find("ms")) e.ms = ms->as_number(), e.rule_ms = line.at("rule_ms").as_number();
  }
  return book;
}

CallTimer event_timer(const Runtime& runtime) {
  return [&runtime](const std::vector<std::function<void()>>& calls) {
    std::vector<double> times;
    for (const Timing& timing : measure(calls, {.precision = 0.01, .seconds = 0.1, .cold = false}, runtime))
      times.push_back(timing.median_ms);
    return times;
  };
}

ConvChoosing parse_choosing(const std::string& name) {
  if (name == "rule") return ConvChoosing::rule;
  if (name == "measured") return ConvChoosing::measured;
  if (name == "compiled") return ConvChoosing::compiled;
  throw Error(ErrorKind::failed, fmt::format("there is no way to choose called {}", name),
              "choose one of rule, measured, compiled");
}

ConvBook choose_convolutions(Model& model, const Runtime& runtime, ConvChoosing how, const CallTimer& timer) {
  ConvBook book{.device = runtime.device_name()};
  if constexpr (kWithCuda) {
    book.library = conv_library();
    std::map<ConvProblem, ConvChoice> chosen;
    for (const LayerConvolution& layer : model.convolutions(runtime.device())) {
      if (layer.choice == nullptr) continue;
      if (!chosen.contains(layer.problem)) {
        book.entries.push_back(choose(layer, runtime, how, timer));
        chosen[layer.problem] = book.entries.back().choice;
      }
      *layer.choice = chosen[layer.problem];
      prepare_choice(layer.problem, *layer.choice);
    }
  }
  return book;
}

std::string library_change(const ConvBook& book) {
  if constexpr (kWithCuda)
    if (const std::string now = conv_library(); now != book.library)
      return fmt::format(
          "the run's convolution plans were made by {}, and now by {}: the last bits may differ",
          book.library, now);
  return "";
}

void use_convolutions(Model& model, const ConvBook& book) {
  if constexpr (kWithCuda) {
    for (const LayerConvolution& layer : model.convolutions(Device::cuda)) {
      if (layer.choice == nullptr) continue;
      const auto refuse = [&](const std::string& why) {
        throw Error(ErrorKind::checkpoint, fmt::format("the run cannot go on as it began: {}", why),
                    fmt::format("resume with {} on {}, or with --device cpu, or start a new run",
                                book.library, book.device),
                    layer.layer);
      };
      const auto entry =
          std::find_if(book.entries.begin(), book.entries.end(),
                       [&](const ConvBook::Entry& e) { return e.problem == layer.problem.text(); });
      if (entry == book.entries.end()) refuse("no plan is stored for " + layer.problem.text());
      try {
        prepare_choice(layer.problem, entry->choice);
      } catch (const Error& error) {
        refuse(error.what());
      }
      *layer.choice = entry->choice;
    }
  }
}

}  // namespace vqlab
