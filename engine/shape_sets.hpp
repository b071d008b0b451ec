// The shapes at which variants are compared: as numbers, by name, or those of a configuration.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "variant_case.hpp"

namespace vqlab {

// The parts between separators, of which there is one at least; they point into the text.
std::vector<std::string_view> split_text(std::string_view text, char separator);

struct NamedShape {
  VariantShape shape;
  std::string name = "";  // "S1", "fmnist-s training"; "" of a shape that was given as numbers
};

// "N,K,D", each from 1 to 2^31 - 1. Throws Error(usage).
NamedShape parse_shape(const std::string& text);

// A list of names, with commas. S1 to S5 are the shapes that kernels are judged at: a small and a large
// codebook in practice, long codes, short codes, and more codes than latents. A name that ends with .toml is
// a configuration and stands for the batches of its training and of inference, whose images are read for
// their size. Throws Error(usage) on other names and on a configuration without a codebook, and what
// load_config and load_image_set throw.
std::vector<NamedShape> shape_set(const std::string& names);

}  // namespace vqlab
