// Small image sets with structure, written as IDX files, and the smallest nets to train on them.
#pragma once

#include <string>
#include <vector>

#include "engine/data/image_set.hpp"
#include "testing.hpp"

namespace vqlab::testing {

// Images of soft blobs whose place and size follow their label (count / 10 of each of 10 classes).
ImageSet synthetic_images(int64_t count, int64_t height, int64_t width, int64_t channels, uint64_t seed);

// Writes train and t10k IDX files with labels into the directory.
void write_idx_set(const std::string& directory, const ImageSet& train, const ImageSet& test);

// A directory with a set of `train` and 24 test images.
void write_synthetic_set(const std::string& directory, int64_t train, int64_t height, int64_t width,
                         int64_t channels);

// TOML of the smallest useful experiment on the set in `directory`: batches of 8, K = 16, D = 4, hidden 8.
std::string tiny_config(const std::string& directory, const std::string& more = "");

}  // namespace vqlab::testing
