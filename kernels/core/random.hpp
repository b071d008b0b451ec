// Counter-based random numbers (Philox 4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC11). A number is a function of (seed, step, tensor, index): there is no state to save, and CPU and GPU
// give equal bits.
#pragma once

#include <Random123/philox.h>

#include <cstdint>

#include "host_device.hpp"

namespace vqlab {

// What a random number is for. Two uses of one (seed, step, index) never share bits.
enum class RandomUse : uint32_t {
  weights = 1,
  codebook,
  order,
  restart,
  kmeans,
  augment,
  dropout,
  mixup,
  labels
};

struct RandomKey {
  uint64_t seed = 0;
  uint32_t step = 0;  // training step, or epoch, or 0
  RandomUse use = RandomUse::weights;
  uint32_t tensor = 0;  // which tensor, among those of one use
};

// 128 random bits for element `index`.
VQ_HOST_DEVICE inline philox4x32_ctr_t random_bits(const RandomKey& key, uint64_t index) {
  const philox4x32_ctr_t counter = {
      {uint32_t(index), uint32_t(index >> 32), key.step, uint32_t(key.use) << 24 | key.tensor}};
  const philox4x32_key_t philox_key = {{uint32_t(key.seed), uint32_t(key.seed >> 32)}};
  return philox4x32(counter, philox_key);
}

// Uniform in [0, 1), a multiple of 2^-24: exact in float.
VQ_HOST_DEVICE inline float random_uniform(const RandomKey& key, uint64_t index) {
  return float(random_bits(key, index).v[0] >> 8) * 0x1p-24f;
}

// A permutation of [0, size): four Feistel rounds on the next even power of two, walking the cycle until the
// value is in range (fewer than 4 tries on average). Sampling without replacement with neither a sort nor
// memory.
class Permutation {
 public:
  VQ_HOST_DEVICE Permutation(const RandomKey& key, uint64_t size) : key_(key), size_(size) {
    while ((uint64_t(1) << (2 * half_bits_)) < size) ++half_bits_;
  }
  // Where position i goes; i < size.
  VQ_HOST_DEVICE uint64_t operator()(uint64_t i) const {
    do {
      i = mix(i);
    } while (i >= size_);
    return i;
  }

 private:
  VQ_HOST_DEVICE uint64_t mix(uint64_t i) const {
    const uint64_t mask = (uint64_t(1) << half_bits_) - 1;
    uint64_t left = i >> half_bits_, right = i & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (random_bits(key_, round << 32 | right).v[0] & mask);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  RandomKey key_;
  uint64_t size_;
  int half_bits_ = 1;  // sizes up to 2^62
};

}  // namespace vqlab
