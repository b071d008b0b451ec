// All trainable parameters in one slab, their gradients and Adam moments in three more of the same layout, so
// that the optimiser is one pass.
#pragma once

#include <string>
#include <vector>

#include "memory.hpp"

namespace vqlab {

struct Parameter {
  std::string name;            // as in a torch state dict: "encoder.conv1.weight"
  std::vector<int64_t> shape;  // in memory; a convolution weight is (A, kernel, kernel, B)
  float bound;                 // initial values are uniform in [-bound, bound)
  int64_t offset = 0;          // in floats, in the slab
};

class ParameterStore {
 public:
  using Id = size_t;

  // Declares a parameter; only before allocate(). Returns its number.
  Id add(std::string name, std::vector<int64_t> shape, float bound);

  // One slab of weights; in training also gradients and the two moments, all zero.
  void allocate(const Runtime& runtime, bool training);
  // Draws the initial weights, keyed by (seed, number of the parameter).
  void initialise(uint64_t seed, const Runtime& runtime);

  View<float> weight(Id id) const { return part(weights_, id); }
  View<float> gradient(Id id) const { return part(gradients_, id); }
  View<float> moment1(Id id) const { return part(moments1_, id); }
  View<float> moment2(Id id) const { return part(moments2_, id); }

  View<float> weights() const { return weights_; }
  View<float> gradients() const { return gradients_; }  // absent in inference
  View<float> moments1() const { return moments1_; }
  View<float> moments2() const { return moments2_; }

  const std::vector<Parameter>& parameters() const { return parameters_; }
  int64_t count() const;  // trainable scalars, without alignment gaps
  int64_t slab_bytes() const { return size_ * int64_t(sizeof(float)); }

 private:
  View<float> part(const View<float>& slab, Id id) const;

  std::vector<Parameter> parameters_;
  int64_t size_ = 0;  // floats of a slab
  Slab slab_{"parameters"};
  View<float> weights_, gradients_, moments1_, moments2_;
};

// Checkpoints keep convolution weights as torch does, (A, B, kernel, kernel); memory has (A, kernel, kernel,
// B). These return the shape and the values in the file's order, and back. Other ranks pass unchanged.
std::vector<int64_t> file_shape(const Parameter& parameter);
std::vector<float> to_file_order(const Parameter& parameter, const float* memory);
std::vector<float> to_memory_order(const Parameter& parameter, const float* file);

}  // namespace vqlab
