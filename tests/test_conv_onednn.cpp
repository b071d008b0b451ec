// Our convolutions against oneDNN's on the layers of the default net: a second opinion beside the double
// reference.
#include <cmath>
#include <dnnl.hpp>
#include <numeric>

#include "kernels/conv/conv2d.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

using dnnl::memory;

struct LayerShape {
  const char* name;
  int64_t side, input, output;
  ConvGeometry geometry;
};

constexpr LayerShape kLayers[] = {
    {"first", 28, 1, 16, {.kernel = 4, .stride = 2, .padding = 1}},
    {"halving", 14, 16, 32, {.kernel = 4, .stride = 2, .padding = 1}},
    {"body", 7, 32, 32, {.kernel = 3, .padding = 1}},
    {"to latents", 7, 32, 16, {.kernel = 1}},
};
constexpr int64_t kBatch = 9;

// A layer's operands, and the same as oneDNN's memory objects.
struct Problem {
  explicit Problem(const LayerShape& s)
      : out(s.geometry.output_side(s.side)),
        x(normal_floats(kBatch * s.side * s.side * s.input, 1)),
        w(normal_floats(s.output * s.geometry.kernel * s.geometry.kernel * s.input, 2)),
        b(normal_floats(s.output, 3)),
        dy(normal_floats(kBatch * out * out * s.output, 4)),
        x_desc({kBatch, s.input, s.side, s.side}, memory::data_type::f32, memory::format_tag::nhwc),
        w_desc({s.output, s.input, s.geometry.kernel, s.geometry.kernel}, memory::data_type::f32,
               memory::format_tag::ohwi),
        b_desc({s.output}, memory::data_type::f32, memory::format_tag::x),
        y_desc({kBatch, s.output, out, out}, memory::data_type::f32, memory::format_tag::nhwc),
        strides{s.geometry.stride, s.geometry.stride},
        padding{s.geometry.padding, s.geometry.padding},
        shape(s) {}

  View<float> images(std::vector<float>& v) const {
    return {v.data(), {kBatch, shape.side, shape.side, shape.input}};
  }
  View<float> outputs(std::vector<float>& v) const { return {v.data(), {kBatch, out, out, shape.output}}; }
  View<float> weights(std::vector<float>& v) const {
    return {v.data(), {shape.output, shape.geometry.kernel, shape.geometry.kernel, shape.input}};
  }
  memory on(const memory::desc& desc, std::vector<float>& v) const { return memory(desc, engine, v.data()); }
  dnnl::convolution_forward::primitive_desc forward_desc() const {
    return {dnnl::convolution_forward::desc(dnnl::prop_kind::forward, dnnl::algorithm::convolution_direct,
                                            x_desc, w_desc, b_desc, y_desc, strides, padding, padding),
            engine};
  }
  void run(const dnnl::primitive& primitive, const std::unordered_map<int, memory>& operands) const {
    dnnl::stream stream(engine);
    primitive.execute(stream, operands);
    stream.wait();
  }

  int64_t out;
  std::vector<float> x, w, b, dy;
  memory::desc x_desc, w_desc, b_desc, y_desc;
  memory::dims strides, padding;
  LayerShape shape;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
};

// Both sides add `terms` products of standard normal numbers, in another order: each result is off by at most
// terms * u times the sum of the products' sizes, about terms * 2 / pi; so the two differ by less than twice
// that.
void require_equal(const std::vector<float>& ours, const std::vector<float>& theirs, int64_t terms,
                   const char* what) {
  const double u = 0x1p-24, tolerance = 2 * double(terms) * u * double(terms);
  require_close(View<const float>(ours.data(), {int64_t(ours.size())}), {theirs.begin(), theirs.end()},
                tolerance, what);
}

template <class Op>
void run_with_scratch(Op op, const Problem& p) {
  const View<const float> input(nullptr, {kBatch, p.shape.side, p.shape.side, p.shape.input});
  std::vector<std::byte> scratch(
      size_t(conv_scratch_bytes(Device::cpu, p.shape.geometry, input, p.shape.output)));
  op.scratch = {scratch.data(), {int64_t(scratch.size())}};
  run(op, Stream{});
}

}  // namespace

TEST_CASE("conv: the layers of the default net agree with oneDNN", "[unit]") {
  for (const LayerShape& shape : kLayers) {
    INFO(shape.name);
    Problem p(shape);
    const int64_t patch = shape.geometry.kernel * shape.geometry.kernel * shape.input,
                  pixels = kBatch * p.out * p.out;
    const auto forward = p.forward_desc();

    std::vector<float> y(p.dy.size()), y_theirs(y.size());
    run_with_scratch(ConvForwardOp{.output = p.outputs(y),
                                   .input = p.images(p.x),
                                   .weight = p.weights(p.w),
                                   .bias = {p.b.data(), {shape.output}},
                                   .geometry = shape.geometry,
                                   .activation = Activation::none,
                                   .scratch = {}},
                     p);
    p.run(dnnl::convolution_forward(forward), {{DNNL_ARG_SRC, p.on(p.x_desc, p.x)},
                                               {DNNL_ARG_WEIGHTS, p.on(p.w_desc, p.w)},
                                               {DNNL_ARG_BIAS, p.on(p.b_desc, p.b)},
                                               {DNNL_ARG_DST, p.on(p.y_desc, y_theirs)}});
    require_equal(y, y_theirs, patch + 1, "forward");

    std::vector<float> dx(p.x.size()), dx_theirs(dx.size());
    run_with_scratch(ConvBackwardDataOp{.d_input = p.images(dx),
                                        .d_output = p.outputs(p.dy),
                                        .weight = p.weights(p.w),
                                        .geometry = shape.geometry,
                                        .scratch = {}},
                     p);
    const dnnl::convolution_backward_data::primitive_desc data(
        dnnl::convolution_backward_data::desc(dnnl::algorithm::convolution_direct, p.x_desc, p.w_desc,
                                              p.y_desc, p.strides, p.padding, p.padding),
        p.engine, forward);
    p.run(dnnl::convolution_backward_data(data), {{DNNL_ARG_DIFF_DST, p.on(p.y_desc, p.dy)},
                                                  {DNNL_ARG_WEIGHTS, p.on(p.w_desc, p.w)},
                                                  {DNNL_ARG_DIFF_SRC, p.on(p.x_desc, dx_theirs)}});
    require_equal(dx, dx_theirs, shape.geometry.kernel * shape.geometry.kernel * shape.output,
                  "backward data");

    std::vector<float> dw(p.w.size()), dw_theirs(dw.size()), db(p.b.size()), db_theirs(db.size());
    run_with_scratch(ConvBackwardWeightOp{.d_weight = p.weights(dw),
                                          .d_bias = {db.data(), {shape.output}},
                                          .d_output = p.outputs(p.dy),
                                          .input = p.images(p.x),
                                          .geometry = shape.geometry,
                                          .scratch = {}},
                     p);
    const dnnl::convolution_backward_weights::primitive_desc weights(
        dnnl::convolution_backward_weights::desc(dnnl::algorithm::convolution_direct, p.x_desc, p.w_desc,
                                                 p.b_desc, p.y_desc, p.strides, p.padding, p.padding),
        p.engine, forward);
    p.run(dnnl::convolution_backward_weights(weights), {{DNNL_ARG_SRC, p.on(p.x_desc, p.x)},
                                                        {DNNL_ARG_DIFF_DST, p.on(p.y_desc, p.dy)},
                                                        {DNNL_ARG_DIFF_WEIGHTS, p.on(p.w_desc, dw_theirs)},
                                                        {DNNL_ARG_DIFF_BIAS, p.on(p.b_desc, db_theirs)}});
    require_equal(dw, dw_theirs, pixels, "backward weight");
    require_equal(db, db_theirs, pixels, "backward bias");
  }
}

}  // namespace vqlab::testing
