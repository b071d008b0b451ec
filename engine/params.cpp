#include "params.hpp"

#include "kernels/core/random.hpp"

namespace vqlab {
namespace {

constexpr int64_t kAlignFloats = 64;

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

// dst[a][b][p] = src[a][p][b] for a < A, b < B, p < P.
std::vector<float> swap_inner(const float* src, int64_t A, int64_t P, int64_t B) {
  std::vector<float> dst(size_t(A * P * B));
  for (int64_t a = 0; a < A; ++a)
    for (int64_t p = 0; p < P; ++p)
      for (int64_t b = 0; b < B; ++b) dst[size_t((a * B + b) * P + p)] = src[(a * P + p) * B + b];
  return dst;
}

}  // namespace

ParameterStore::Id ParameterStore::add(std::string name, std::vector<int64_t> shape, float bound) {
  VQ_REQUIRE(!weights_, "parameter '{}' is declared after allocation", name);
  const int64_t offset = size_;
  size_ += (elements(shape) + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
  parameters_.push_back({std::move(name), std::move(shape), bound, offset});
  return parameters_.size() - 1;
}

void ParameterStore::allocate(const Runtime& runtime, bool training) {
  const auto plan = [&] {
    weights_ = slab_.take<float>({size_});
    if (!training) return;
    gradients_ = slab_.take<float>({size_});
    moments1_ = slab_.take<float>({size_});
    moments2_ = slab_.take<float>({size_});
  };
  plan();
  slab_.allocate(runtime);
  plan();
}

void ParameterStore::initialise(uint64_t seed, const Runtime& runtime) {
  for (size_t id = 0; id < parameters_.size(); ++id) {
    const RandomKey key{.seed = seed, .use = RandomUse::weights, .tensor = uint32_t(id)};
    std::vector<float> values(size_t(elements(parameters_[id].shape)));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = parameters_[id].bound * (2.0f * random_uniform(key, i) - 1.0f);
    runtime.upload(weight(id).data, values.data(), int64_t(values.size() * sizeof(float)), runtime.compute());
    runtime.synchronize(runtime.compute());
  }
}

View<float> ParameterStore::part(const View<float>& slab, Id id) const {
  const Parameter& p = parameters_[id];
  View<float> view;
  view.rank = int(p.shape.size());
  view.dim = {1, 1, 1, 1};
  std::copy(p.shape.begin(), p.shape.end(), view.dim.begin());
  view.data = slab ? slab.data + p.offset : nullptr;
  return view;
}

int64_t ParameterStore::count() const {
  int64_t total = 0;
  for (const Parameter& p : parameters_) total += elements(p.shape);
  return total;
}

std::vector<int64_t> file_shape(const Parameter& parameter) {
  const std::vector<int64_t>& s = parameter.shape;
  return s.size() == 4 ? std::vector<int64_t>{s[0], s[3], s[1], s[2]} : s;
}

std::vector<float> to_file_order(const Parameter& parameter, const float* memory) {
  const std::vector<int64_t>& s = parameter.shape;
  if (s.size() == 4) return swap_inner(memory, s[0], s[1] * s[2], s[3]);
  return {memory, memory + elements(s)};
}

std::vector<float> to_memory_order(const Parameter& parameter, const float* file) {
  const std::vector<int64_t>& s = parameter.shape;
  if (s.size() == 4) return swap_inner(file, s[0], s[3], s[1] * s[2]);
  return {file, file + elements(s)};
}

}  // namespace vqlab
