// The backend API of cuDNN, as far as convolutions need it: descriptors that own themselves, an operation
// graph, the engine configs that the heuristics offer for it, and plans. Everything throws Error(failed) if
// cuDNN refuses.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "conv_choice.hpp"
#include "cudnn.hpp"

namespace vqlab {

class CudnnDescriptor {
 public:
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);
  CudnnDescriptor(CudnnDescriptor&& other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept {
    std::swap(raw_, other.raw_);
    return *this;
  }
  ~CudnnDescriptor();

  // One value, or several. The attribute's type is that of T.
  template <class T>
  void set(cudnnBackendAttributeName_t name, const T& value) {
    set(name, kAttributeType<T>, 1, &value);
  }
  template <class T, size_t N>
  void set(cudnnBackendAttributeName_t name, const std::array<T, N>& values) {
    set(name, kAttributeType<T>, int64_t(N), values.data());
  }
  template <class T>
  void set(cudnnBackendAttributeName_t name, std::span<const T> values) {
    set(name, kAttributeType<T>, int64_t(values.size()), values.data());
  }
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.raw_);
  }
  void set(cudnnBackendAttributeName_t name, std::span<const CudnnDescriptor> values);
  void set(cudnnBackendAttributeName_t name, const std::string& text) {
    set(name, CUDNN_TYPE_CHAR, int64_t(text.size()), text.data());
  }
  // Checks the attributes; then they can no longer be set. The second form returns cuDNN's verdict.
  void finalize();
  cudnnStatus_t try_finalize() { return cudnn().cudnnBackendFinalize(raw_); }

  int64_t get_int64(cudnnBackendAttributeName_t name) const;
  cudnnBackendKnobType_t get_knob_type() const;  // of a knob choice
  // At most 16 values.
  template <class T>
  std::vector<T> get_values(cudnnBackendAttributeName_t name) const {
    std::vector<T> values(16);
    values.resize(size_t(get(name, kAttributeType<T>, int64_t(values.size()), values.data())));
    return values;
  }
  // Fills `value`, a descriptor made for it.
  void get_descriptor(cudnnBackendAttributeName_t name, CudnnDescriptor& value) const {
    get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.raw_);
  }
  // How many descriptors it would give, and at most `most` of them.
  int64_t count(cudnnBackendAttributeName_t name) const;
  std::vector<CudnnDescriptor> get_descriptors(cudnnBackendAttributeName_t name,
                                               cudnnBackendDescriptorType_t type, int64_t most) const;

  cudnnBackendDescriptor_t raw() const { return raw_; }

 private:
  template <class T>
  static constexpr cudnnBackendAttributeType_t attribute_type();
  template <class T>
  static constexpr cudnnBackendAttributeType_t kAttributeType = attribute_type<T>();

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
           const void* values);
  // Returns how many there are.
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t room,
              void* values) const;

  cudnnBackendDescriptor_t raw_ = nullptr;
};

// What plans are made for: the device of a handle, or one that need not be here, by its properties. Refers to
// what it is made of.
class CudnnTarget {
 public:
  explicit CudnnTarget(cudnnHandle_t handle) : handle_(handle) {}
  explicit CudnnTarget(const CudnnDescriptor& properties) : properties_(&properties) {}

  cudnnHandle_t handle() const { return handle_; }  // null if the device is not here
  const CudnnDescriptor& properties() const { return *properties_; }

 private:
  cudnnHandle_t handle_ = nullptr;
  const CudnnDescriptor* properties_ = nullptr;
};

// From cuDNN's JSON representation of a device.
CudnnDescriptor cudnn_device(const std::string& json);

// A dense tensor with channels last, its data aligned to so many bytes. Dimensions in cuDNN's order: images,
// channels, height, width; of a filter output channels, input channels, height, width.
CudnnDescriptor cudnn_tensor(int64_t uid, const std::array<int64_t, 4>& dimensions, int64_t alignment,
                             cudnnDataType_t type);
// One in fp32 that exists within a graph only, between two of its operations.
CudnnDescriptor cudnn_inner_tensor(int64_t uid, const std::array<int64_t, 4>& dimensions);

// Two-dimensional, the same on both axes and on both sides, without dilation, in fp32.
CudnnDescriptor cudnn_convolution(int64_t padding, int64_t stride);

// fprop reads the large side and the filter, dgrad the small side and the filter, wgrad both sides; each
// overwrites the third.
CudnnDescriptor cudnn_operation(ConvOperation kind, const CudnnDescriptor& convolution,
                                const CudnnDescriptor& large, const CudnnDescriptor& filter,
                                const CudnnDescriptor& small);

// result = a + b, where b may be one value for each channel.
CudnnDescriptor cudnn_add(const CudnnDescriptor& a, const CudnnDescriptor& b, const CudnnDescriptor& result);
// output = max(input, 0)
CudnnDescriptor cudnn_relu(const CudnnDescriptor& input, const CudnnDescriptor& output);
// d_input = d_output where output > 0, else 0; output is what the ReLU produced.
CudnnDescriptor cudnn_relu_gradient(const CudnnDescriptor& output, const CudnnDescriptor& d_output,
                                    const CudnnDescriptor& d_input);
// sums (1, channels, 1, 1) of input over images and pixels.
CudnnDescriptor cudnn_channel_sums(const CudnnDescriptor& input, const CudnnDescriptor& sums);

CudnnDescriptor cudnn_graph(const CudnnTarget& target, std::span<const CudnnDescriptor> operations);

// A way to compute a graph. Engines differ in their kernels, configs of one engine in their knobs.
struct CudnnConfig {
  CudnnDescriptor config;
  int64_t engine;
  std::vector<ConvKnob> knobs;
  std::vector<cudnnBackendNumericalNote_t> numerical_notes;
  std::vector<cudnnBackendBehaviorNote_t> behavior_notes;
};

// What the heuristics recommend, the fastest by their estimate first.
std::vector<CudnnConfig> cudnn_configs(const CudnnTarget& target, const CudnnDescriptor& graph,
                                       cudnnBackendHeurMode_t mode);

// The config of these names, from an earlier list. Nothing if cuDNN refuses: another version, or another GPU.
std::optional<CudnnConfig> cudnn_config(const CudnnTarget& target, const CudnnDescriptor& graph,
                                        int64_t engine, const std::vector<ConvKnob>& knobs);

// Nothing if the config turns out not to serve.
std::optional<CudnnDescriptor> cudnn_plan(const CudnnTarget& target, const CudnnDescriptor& config);

// Enqueues the plan on the handle's stream: data[i] is the tensor uids[i].
void cudnn_execute(cudnnHandle_t handle, const CudnnDescriptor& plan, std::span<const int64_t> uids,
                   std::span<void* const> data, void* workspace);

template <class T>
constexpr cudnnBackendAttributeType_t CudnnDescriptor::attribute_type() {
  if constexpr (std::is_same_v<T, int64_t>) return CUDNN_TYPE_INT64;
  if constexpr (std::is_same_v<T, float>) return CUDNN_TYPE_FLOAT;
  if constexpr (std::is_same_v<T, bool>) return CUDNN_TYPE_BOOLEAN;
  if constexpr (std::is_same_v<T, cudnnPointwiseMode_t>) return CUDNN_TYPE_POINTWISE_MODE;
  if constexpr (std::is_same_v<T, cudnnReduceTensorOp_t>) return CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
  if constexpr (std::is_same_v<T, cudnnBackendKnobType_t>) return CUDNN_TYPE_KNOB_TYPE;
  if constexpr (std::is_same_v<T, void*>) return CUDNN_TYPE_VOID_PTR;
  if constexpr (std::is_same_v<T, cudnnHandle_t>) return CUDNN_TYPE_HANDLE;
  if constexpr (std::is_same_v<T, cudnnDataType_t>) return CUDNN_TYPE_DATA_TYPE;
  if constexpr (std::is_same_v<T, cudnnConvolutionMode_t>) return CUDNN_TYPE_CONVOLUTION_MODE;
  if constexpr (std::is_same_v<T, cudnnBackendHeurMode_t>) return CUDNN_TYPE_HEUR_MODE;
  if constexpr (std::is_same_v<T, cudnnBackendNumericalNote_t>) return CUDNN_TYPE_NUMERICAL_NOTE;
  if constexpr (std::is_same_v<T, cudnnBackendBehaviorNote_t>) return CUDNN_TYPE_BEHAVIOR_NOTE;
}

}  // namespace vqlab
