#include "cudnn_graph.hpp"

#include <algorithm>

namespace vqlab {
namespace {

// The attribute names of the three operations, which have the same attributes.
struct OperationNames {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t convolution, large, filter, small, alpha, beta;
};

OperationNames operation_names(ConvOperation kind) {
  switch (kind) {
    case ConvOperation::fprop:
      return {.type = CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
              .convolution = CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
              .large = CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
              .filter = CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
              .small = CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
              .alpha = CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
              .beta = CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    case ConvOperation::dgrad:
      return {.type = CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
              .convolution = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
              .large = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
              .filter = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
              .small = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
              .alpha = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
              .beta = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    case ConvOperation::wgrad:
      break;
  }
  return {.type = CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
          .convolution = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
          .large = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
          .filter = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
          .small = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
          .alpha = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
          .beta = CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
}

CudnnConfig describe_config(CudnnDescriptor config) {
  CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  config.get_descriptor(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  // cuDNN does not say how many there are before it gets room for them.
  constexpr size_t kMostKnobs = 32;
  std::vector<ConvKnob> knobs;
  for (const CudnnDescriptor& knob : config.get_descriptors(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                                            CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, kMostKnobs))
    knobs.push_back({knob.get_knob_type(), knob.get_int64(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE)});
  return {.config = std::move(config),
          .engine = engine.get_int64(CUDNN_ATTR_ENGINE_GLOBAL_INDEX),
          .knobs = std::move(knobs),
          .numerical_notes = engine.get_values<cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE),
          .behavior_notes = engine.get_values<cudnnBackendBehaviorNote_t>(CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE)};
}

CudnnDescriptor make_tensor(int64_t uid, const std::array<int64_t, 4>& dimensions, int64_t alignment,
                            cudnnDataType_t type, bool is_virtual) {
  const auto [n, c, h, w] = dimensions;
  CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, uid);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, dimensions);
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, std::array<int64_t, 4>{h * w * c, 1, w * c, c});
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, alignment);
  if (is_virtual) tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, true);
  tensor.finalize();
  return tensor;
}

CudnnDescriptor make_pointwise(cudnnPointwiseMode_t mode) {
  CudnnDescriptor pointwise(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  pointwise.set(CUDNN_ATTR_POINTWISE_MODE, mode);
  pointwise.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  pointwise.finalize();
  return pointwise;
}

CudnnDescriptor pointwise_operation(
    cudnnPointwiseMode_t mode,
    std::initializer_list<std::pair<cudnnBackendAttributeName_t, const CudnnDescriptor*>> tensors) {
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, make_pointwise(mode));
  for (const auto& [name, tensor] : tensors) operation.set(name, *tensor);
  operation.finalize();
  return operation;
}

}  // namespace

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  cudnn_check(cudnn().cudnnBackendCreateDescriptor(type, &raw_),
              fmt::format("cudnnBackendCreateDescriptor({})", int(type)));
}

CudnnDescriptor::~CudnnDescriptor() {
  if (raw_ != nullptr) cudnn().cudnnBackendDestroyDescriptor(raw_);
}

void CudnnDescriptor::finalize() { cudnn_check(try_finalize(), "cudnnBackendFinalize"); }

int64_t CudnnDescriptor::get_int64(cudnnBackendAttributeName_t name) const {
  int64_t value = 0;
  get(name, CUDNN_TYPE_INT64, 1, &value);
  return value;
}

int64_t CudnnDescriptor::count(cudnnBackendAttributeName_t name) const {
  return get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr);
}

cudnnBackendKnobType_t CudnnDescriptor::get_knob_type() const {
  cudnnBackendKnobType_t type{};
  get(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
  return type;
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, std::span<const CudnnDescriptor> values) {
  std::vector<cudnnBackendDescriptor_t> raws;
  for (const CudnnDescriptor& value : values) raws.push_back(value.raw_);
  set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, int64_t(raws.size()), raws.data());
}

std::vector<CudnnDescriptor> CudnnDescriptor::get_descriptors(cudnnBackendAttributeName_t name,
                                                              cudnnBackendDescriptorType_t type,
                                                              int64_t most) const {
  std::vector<CudnnDescriptor> values;
  std::vector<cudnnBackendDescriptor_t> raws;
  for (int64_t i = 0; i < most; ++i) raws.push_back(values.emplace_back(type).raw_);
  if (values.empty()) return values;
  const int64_t filled = get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, most, raws.data());
  values.erase(values.begin() + std::min(filled, most), values.end());
  return values;
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                          const void* values) {
  cudnn_check(cudnn().cudnnBackendSetAttribute(raw_, name, type, count, values),
              fmt::format("cudnnBackendSetAttribute({})", int(name)));
}

int64_t CudnnDescriptor::get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t room,
                             void* values) const {
  int64_t count = 0;
  cudnn_check(cudnn().cudnnBackendGetAttribute(raw_, name, type, room, &count, values),
              fmt::format("cudnnBackendGetAttribute({})", int(name)));
  return count;
}

CudnnDescriptor cudnn_device(const std::string& json) {
  CudnnDescriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, json);
  device.finalize();
  return device;
}

CudnnDescriptor cudnn_tensor(int64_t uid, const std::array<int64_t, 4>& dimensions, int64_t alignment,
                             cudnnDataType_t type) {
  return make_tensor(uid, dimensions, alignment, type, false);
}

CudnnDescriptor cudnn_inner_tensor(int64_t uid, const std::array<int64_t, 4>& dimensions) {
  return make_tensor(uid, dimensions, int64_t(sizeof(float)), CUDNN_DATA_FLOAT, true);
}

CudnnDescriptor cudnn_convolution(int64_t padding, int64_t stride) {
  using Pair = std::array<int64_t, 2>;
  CudnnDescriptor convolution(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  convolution.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int64_t(2));
  convolution.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  convolution.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CROSS_CORRELATION);
  convolution.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, Pair{padding, padding});
  convolution.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, Pair{padding, padding});
  convolution.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, Pair{stride, stride});
  convolution.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, Pair{1, 1});
  convolution.finalize();
  return convolution;
}

CudnnDescriptor cudnn_operation(ConvOperation kind, const CudnnDescriptor& convolution,
                                const CudnnDescriptor& large, const CudnnDescriptor& filter,
                                const CudnnDescriptor& small) {
  const OperationNames names = operation_names(kind);
  CudnnDescriptor operation(names.type);
  operation.set(names.convolution, convolution);
  operation.set(names.large, large);
  operation.set(names.filter, filter);
  operation.set(names.small, small);
  operation.set(names.alpha, 1.0f);
  operation.set(names.beta, 0.0f);
  operation.finalize();
  return operation;
}

CudnnDescriptor cudnn_add(const CudnnDescriptor& a, const CudnnDescriptor& b, const CudnnDescriptor& result) {
  return pointwise_operation(CUDNN_POINTWISE_ADD, {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &a},
                                                   {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, &b},
                                                   {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &result}});
}

CudnnDescriptor cudnn_relu(const CudnnDescriptor& input, const CudnnDescriptor& output) {
  return pointwise_operation(CUDNN_POINTWISE_RELU_FWD, {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &input},
                                                        {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &output}});
}

CudnnDescriptor cudnn_relu_gradient(const CudnnDescriptor& output, const CudnnDescriptor& d_output,
                                    const CudnnDescriptor& d_input) {
  return pointwise_operation(CUDNN_POINTWISE_RELU_BWD, {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &output},
                                                        {CUDNN_ATTR_OPERATION_POINTWISE_DYDESC, &d_output},
                                                        {CUDNN_ATTR_OPERATION_POINTWISE_DXDESC, &d_input}});
}

CudnnDescriptor cudnn_channel_sums(const CudnnDescriptor& input, const CudnnDescriptor& sums) {
  CudnnDescriptor reduction(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_REDUCE_TENSOR_ADD);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  reduction.finalize();
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, input);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, sums);
  operation.finalize();
  return operation;
}

CudnnDescriptor cudnn_graph(const CudnnTarget& target, std::span<const CudnnDescriptor> operations) {
  CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (target.handle() != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, target.handle());
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations);
  graph.finalize();
  return graph;
}

std::vector<CudnnConfig> cudnn_configs(const CudnnTarget& target, const CudnnDescriptor& graph,
                                       cudnnBackendHeurMode_t mode) {
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, mode);
  if (target.handle() == nullptr) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target.properties());
  std::vector<CudnnConfig> configs;
  if (heuristics.try_finalize() != CUDNN_STATUS_SUCCESS) return configs;  // its way to say that it has none
  for (CudnnDescriptor& config :
       heuristics.get_descriptors(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                  heuristics.count(CUDNN_ATTR_ENGINEHEUR_RESULTS)))
    configs.push_back(describe_config(std::move(config)));
  return configs;
}

std::optional<CudnnConfig> cudnn_config(const CudnnTarget& target, const CudnnDescriptor& graph,
                                        int64_t engine_index, const std::vector<ConvKnob>& knobs) {
  CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR), config(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  engine.set(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, graph);
  engine.set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, engine_index);
  if (target.handle() == nullptr) engine.set(CUDNN_ATTR_ENGINE_DEVICEPROP, target.properties());
  if (engine.try_finalize() != CUDNN_STATUS_SUCCESS) return std::nullopt;
  std::vector<CudnnDescriptor> choices;
  for (const ConvKnob& knob : knobs) {
    CudnnDescriptor& choice = choices.emplace_back(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, cudnnBackendKnobType_t(knob.type));
    choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, knob.value);
    if (choice.try_finalize() != CUDNN_STATUS_SUCCESS) return std::nullopt;
  }
  config.set(CUDNN_ATTR_ENGINECFG_ENGINE, engine);
  if (!choices.empty())
    config.set(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, std::span<const CudnnDescriptor>(choices));
  if (config.try_finalize() != CUDNN_STATUS_SUCCESS) return std::nullopt;
  return describe_config(std::move(config));
}

std::optional<CudnnDescriptor> cudnn_plan(const CudnnTarget& target, const CudnnDescriptor& config) {
  CudnnDescriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  if (target.handle() != nullptr)
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, target.handle());
  else
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target.properties());
  plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  if (plan.try_finalize() != CUDNN_STATUS_SUCCESS) return std::nullopt;
  return plan;
}

void cudnn_execute(cudnnHandle_t handle, const CudnnDescriptor& plan, std::span<const int64_t> uids,
                   std::span<void* const> data, void* workspace) {
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, data);
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, workspace);
  pack.finalize();
  CUDNN_CHECK(cudnn().cudnnBackendExecute(handle, plan.raw(), pack.raw()));
}

}  // namespace vqlab
