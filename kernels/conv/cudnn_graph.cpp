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
  return {.config = std::move(config),
          .engine = engine.get_int64(CUDNN_ATTR_ENGINE_GLOBAL_INDEX),
          .numerical_notes = engine.get_values<cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE),
          .behavior_notes = engine.get_values<cudnnBackendBehaviorNote_t>(CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE)};
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

std::vector<CudnnDescriptor> CudnnDescriptor::get_descriptors(cudnnBackendAttributeName_t name,
                                                              cudnnBackendDescriptorType_t type) const {
  std::vector<CudnnDescriptor> values;
  std::vector<cudnnBackendDescriptor_t> raws;
  for (int64_t count = get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr); count > 0; --count)
    raws.push_back(values.emplace_back(type).raw_);
  if (values.empty()) return values;
  const int64_t filled = get(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, int64_t(raws.size()), raws.data());
  values.erase(values.begin() + std::min(filled, int64_t(raws.size())), values.end());
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

CudnnDescriptor cudnn_tensor(int64_t uid, const std::array<int64_t, 4>& dimensions, int64_t alignment) {
  const auto [n, c, h, w] = dimensions;
  CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, uid);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_DATA_FLOAT);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, dimensions);
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, std::array<int64_t, 4>{h * w * c, 1, w * c, c});
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, alignment);
  tensor.finalize();
  return tensor;
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

CudnnDescriptor cudnn_graph(const CudnnTarget& target, const CudnnDescriptor& operation) {
  CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (target.handle() != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, target.handle());
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
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
       heuristics.get_descriptors(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
    configs.push_back(describe_config(std::move(config)));
  return configs;
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

void cudnn_execute(cudnnHandle_t handle, const CudnnDescriptor& plan, const std::array<int64_t, 3>& uids,
                   const std::array<void*, 3>& data, void* workspace) {
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, data);
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, workspace);
  pack.finalize();
  CUDNN_CHECK(cudnn().cudnnBackendExecute(handle, plan.raw(), pack.raw()));
}

}  // namespace vqlab
