#include "conv_problem.hpp"

namespace vqlab {
namespace {

ConvProblem make_problem(ConvOperation operation, const ConvGeometry& g, const View<const float>& input,
                         const View<const float>& output) {
  const bool normal = g.kind == ConvKind::normal;
  const View<const float>&large = normal ? input : output, &small = normal ? output : input;
  return {.operation = operation,
          .batch = input[0],
          .large_height = large[1],
          .large_width = large[2],
          .large_channels = large[3],
          .small_height = small[1],
          .small_width = small[2],
          .small_channels = small[3],
          .kernel = g.kernel,
          .stride = g.stride,
          .padding = g.padding};
}

}  // namespace

std::string ConvProblem::text() const {
  constexpr const char *kNames[] = {"fprop", "dgrad", "wgrad"}, *kArrows[] = {"->", "<-", "x"},
                       *kFusions[] = {"", "+bias", "+bias+relu", "+mask", "+mask+sums"};
  return fmt::format("{}{} ({}, {}, {}, {}) {} ({}, {}, {}, {}), kernel {}, stride {}, padding {}, {}",
                     kNames[int(operation)], kFusions[int(fusion)], batch, large_height, large_width,
                     large_channels, kArrows[int(operation)], batch, small_height, small_width,
                     small_channels, kernel, stride, padding, precision_name(precision));
}

ConvProblem forward_problem(const ConvGeometry& geometry, const View<const float>& input,
                            const View<const float>& output) {
  const bool normal = geometry.kind == ConvKind::normal;
  return make_problem(normal ? ConvOperation::fprop : ConvOperation::dgrad, geometry, input, output);
}

ConvProblem backward_data_problem(const ConvGeometry& geometry, const View<const float>& input,
                                  const View<const float>& output) {
  const bool normal = geometry.kind == ConvKind::normal;
  return make_problem(normal ? ConvOperation::dgrad : ConvOperation::fprop, geometry, input, output);
}

ConvProblem backward_weight_problem(const ConvGeometry& geometry, const View<const float>& input,
                                    const View<const float>& output) {
  return make_problem(ConvOperation::wgrad, geometry, input, output);
}

}  // namespace vqlab
