#include "params.hpp"

#include "kernels/core/random.hpp"

namespace vqlab {
namespace {

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

// No group of weights that decay together has weights of two parameters.
int64_t whole_groups(int64_t floats) { return decay_groups(floats) * kDecayGroup; }

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
  VQ_REQUIRE(!values_, "parameter '{}' is declared after allocation", name);
  const int64_t offset = size_;
  size_ += whole_groups(elements(shape));
  parameters_.push_back(
      {.name = std::move(name), .shape = std::move(shape), .bound = bound, .offset = offset});
  return parameters_.size() - 1;
}

ParameterStore::Id ParameterStore::add_constant(std::string name, std::vector<int64_t> shape, float value) {
  const Id id = add(std::move(name), std::move(shape), 0.0f);
  parameters_[id].centre = value;
  return id;
}

ParameterStore::Id ParameterStore::add_buffer(std::string name, int64_t size, float initial) {
  VQ_REQUIRE(!values_, "buffer '{}' is declared after allocation", name);
  buffers_.push_back({.name = std::move(name), .size = size, .initial = initial, .offset = buffers_size_});
  buffers_size_ += whole_groups(size);
  return buffers_.size() - 1;
}

void ParameterStore::allocate(const Runtime& runtime, bool training, bool averaged) {
  const auto plan = [&] {
    values_ = slab_.take<float>({size_ + buffers_size_});
    if (!training) return;
    gradients_ = slab_.take<float>({size_});
    moments1_ = slab_.take<float>({size_});
    moments2_ = slab_.take<float>({size_});
    decayed_ = slab_.take<uint8_t>({decay_groups(size_)});
    if (averaged) averages_ = slab_.take<float>({size_ + buffers_size_});
  };
  plan();
  slab_.allocate(runtime);
  plan();
}

void ParameterStore::initialise(uint64_t seed, const Runtime& runtime) {
  const auto upload = [&](const auto& to, const auto& values) {
    runtime.upload(to.data, values.data(), to.bytes(), runtime.compute());
    runtime.synchronize(runtime.compute());
  };
  std::vector<uint8_t> decays(size_t(decay_groups(size_)));
  for (size_t id = 0; id < parameters_.size(); ++id) {
    const Parameter& p = parameters_[id];
    const RandomKey key{.seed = seed, .use = RandomUse::weights, .tensor = uint32_t(id)};
    std::vector<float> values(size_t(elements(p.shape)), p.centre);
    if (p.bound > 0.0f)
      for (size_t i = 0; i < values.size(); ++i) values[i] = p.bound * (2.0f * random_uniform(key, i) - 1.0f);
    upload(weight(id), values);
    if (averages_) upload(average(id), values);
    if (p.shape.size() == 4)
      std::fill_n(decays.begin() + p.offset / kDecayGroup, decay_groups(elements(p.shape)), uint8_t(1));
  }
  for (size_t id = 0; id < buffers_.size(); ++id) {
    const std::vector<float> values(size_t(buffers_[id].size), buffers_[id].initial);
    upload(buffer(id), values);
    if (averages_) upload(buffer_average(id), values);
  }
  if (decayed_) upload(decayed_, decays);
}

ParameterStore::Id ParameterStore::find(std::string_view name) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                  [=](const Parameter& p) { return p.name == name; });
  VQ_REQUIRE(found != parameters_.end(), "no parameter is called {}", name);
  return Id(found - parameters_.begin());
}

View<float> ParameterStore::buffer_in(const View<float>& values, Id id) const {
  return {values ? values.data + size_ + buffers_[id].offset : nullptr, {buffers_[id].size}};
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
