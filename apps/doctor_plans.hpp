// `vqlab doctor --plans CONFIG [--card NAME]`.
#pragma once

#include "command.hpp"

namespace vqlab {

// Prints how cuDNN would compute each convolution of a training step of `config`, alone and with what follows
// fused to it, on that card, or on the present GPU. Throws Error(usage) for another card, Error(device) where
// there is neither a card's name nor a GPU, or no cuDNN.
CommandResult show_plans(const std::string& config, const std::vector<std::string>& overrides,
                         const std::string& card, const CommonOptions& common);

}  // namespace vqlab
