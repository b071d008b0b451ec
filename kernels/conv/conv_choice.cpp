#include "conv_choice.hpp"

namespace vqlab {

std::string ConvChoice::text() const {
  if (engine < 0) return "by the rule";
  std::string text = fmt::format("engine {}", engine);
  for (size_t i = 0; i < knobs.size(); ++i)
    text += fmt::format("{}{}={}", i == 0 ? ", " : " ", knobs[i].type, knobs[i].value);
  return text + (fused ? ", fused" : "");
}

}  // namespace vqlab
