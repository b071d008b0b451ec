// A set of labelled pictures in memory, read from the files in which such sets are published.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/view.hpp"

namespace vqlab {

enum class Split { train, test };

struct ImageSet {
  int64_t count = 0, height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;           // (count, height, width, channels)
  std::vector<int32_t> labels;           // (count), or empty: the set has none
  std::vector<std::string> class_names;  // by label, or empty: the set names none

  View<const uint8_t> images() const { return {pixels.data(), {count, height, width, channels}}; }
};

// Limits of every reader: what a header promises beyond them is refused.
inline constexpr int64_t kMaxImageSide = 4096;
inline constexpr int64_t kMaxSetBytes = int64_t(64) << 30;

// Reads the training or the test pictures of a set from its directory. Kinds: "idx", "cifar". Throws
// Error(usage) on another kind, Error(data) on files that are missing, damaged or beyond the limits.
ImageSet load_image_set(std::string_view kind, const std::string& directory, Split split);

// IDX, the format of MNIST and Fashion-MNIST (http://yann.lecun.com/exdb/mnist):
// {train,t10k}-images-idx3-ubyte with (n, H, W) grey, or -images-idx4-ubyte with (n, H, W, C) pictures, C 1
// or 3, and optionally -labels-idx1-ubyte; each plain or as .gz.
ImageSet load_idx(const std::string& directory, Split split);

// CIFAR-10, binary version (Krizhevsky, "Learning multiple layers of features from tiny images", 2009):
// data_batch_1.bin to data_batch_5.bin, those that are there, or test_batch.bin, and optionally
// batches.meta.txt.
ImageSet load_cifar(const std::string& directory, Split split);

// For the readers: throws Error(data) unless the directory is there, with the way to get the set as hint.
void require_data_directory(const std::string& directory);

}  // namespace vqlab
