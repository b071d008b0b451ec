// All trainable parameters in one slab, their gradients and Adam moments in three more of the same layout, so
// that the optimiser is one pass.
#pragma once

#include <string>
#include <vector>

#include "kernels/nn/optimizer.hpp"
#include "memory.hpp"

namespace vqlab {

struct Parameter {
  std::string name;            // as in a torch state dict: "encoder.conv1.weight"
  std::vector<int64_t> shape;  // in memory; a convolution weight is (A, kernel, kernel, B)
  float bound;                 // initial values are uniform in [-bound, bound), around `centre`
  float centre = 0.0f;
  int64_t offset = 0;  // in floats, in the slab
};

// What training averages and no optimiser changes, part of the model: the statistics of a BatchNorm.
struct Buffer {
  std::string name;
  int64_t size;
  float initial;
  int64_t offset = 0;
};

class ParameterStore {
 public:
  using Id = size_t;

  // Declares a parameter; only before allocate(). Returns its number.
  Id add(std::string name, std::vector<int64_t> shape, float bound);
  // One whose initial values are all `value`.
  Id add_constant(std::string name, std::vector<int64_t> shape, float value);
  // Declares a buffer; numbered apart from parameters.
  Id add_buffer(std::string name, int64_t size, float initial);

  // One slab of weights and the buffers; in training also gradients and the two moments, all zero, and, if
  // asked, averages of weights and buffers.
  void allocate(const Runtime& runtime, bool training, bool averaged = false);
  // Draws the initial weights, keyed by (seed, number of the parameter), and sets the buffers.
  void initialise(uint64_t seed, const Runtime& runtime);

  // By name, which must be there.
  Id find(std::string_view name) const;
  View<float> weight(Id id) const { return part(values_, id); }
  View<float> gradient(Id id) const { return part(gradients_, id); }
  View<float> moment1(Id id) const { return part(moments1_, id); }
  View<float> moment2(Id id) const { return part(moments2_, id); }

  View<float> average(Id id) const { return part(averages_, id); }
  View<float> buffer(Id id) const { return buffer_in(values_, id); }
  View<float> buffer_average(Id id) const { return buffer_in(averages_, id); }

  View<float> weights() const { return {values_.data, {values_ ? size_ : 0}}; }
  View<float> values() const { return values_; }        // the weights and behind them the buffers
  View<float> averages() const { return averages_; }    // of the values over the steps, or absent
  View<float> gradients() const { return gradients_; }  // absent in inference
  View<float> moments1() const { return moments1_; }
  View<float> moments2() const { return moments2_; }

  // For AdamOp: 1 for the weights of convolutions, 0 for biases and scales. Set by initialise().
  View<const uint8_t> decayed() const { return decayed_; }

  const std::vector<Parameter>& parameters() const { return parameters_; }
  const std::vector<Buffer>& buffers() const { return buffers_; }
  int64_t count() const;  // trainable scalars, without alignment gaps
  int64_t slab_bytes() const { return size_ * int64_t(sizeof(float)); }

 private:
  View<float> part(const View<float>& slab, Id id) const;
  View<float> buffer_in(const View<float>& values, Id id) const;

  std::vector<Parameter> parameters_;
  std::vector<Buffer> buffers_;
  int64_t size_ = 0, buffers_size_ = 0;  // floats of a slab
  Slab slab_{"parameters"};
  View<float> values_, gradients_, moments1_, moments2_, averages_;
  View<uint8_t> decayed_;
};

// Checkpoints keep convolution weights as torch does, (A, B, kernel, kernel); memory has (A, kernel, kernel,
// B). These return the shape and the values in the file's order, and back. Other ranks pass unchanged.
std::vector<int64_t> file_shape(const Parameter& parameter);
std::vector<float> to_file_order(const Parameter& parameter, const float* memory);
std::vector<float> to_memory_order(const Parameter& parameter, const float* file);

}  // namespace vqlab
