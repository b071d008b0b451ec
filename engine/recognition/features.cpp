#include "features.hpp"

#include <fmt/format.h>

#include <cmath>

#include "engine/evaluate.hpp"
#include "kernels/core/names.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

constexpr FeatureEntry kFeatures[] = {
    {"pixels", "the image itself, in [0, 1]", FeatureSource::pixels},
    {"hog", "histograms of oriented gradients, 4 x 4 cells, 9 bins", FeatureSource::pixels},
    {"z_e", "latents in front of the quantizer", FeatureSource::encoder},
    {"z_q", "quantized latents", FeatureSource::encoder},
    {"onehot", "the code at each place, one-hot", FeatureSource::codes},
    {"histogram", "square roots of how often an image has each code, anywhere", FeatureSource::codes},
    {"pyramid", "such histograms of the image and of its quarters", FeatureSource::codes},
    {"enc_h", "the encoder's last map, which the 1x1 convolution to the latents reads",
     FeatureSource::encoder},
    {"dec_h", "the decoder's map before its first upsampling, a function of the codes alone",
     FeatureSource::decoder}};

constexpr int64_t kQuarters = 4;

// The size of one image's features.
int64_t dims_of(std::string_view name, const Model& model) {
  const auto& [height, width, channels] = model.shape();
  const int64_t K = model.quantizer().codebook_size(), places = model.code_height() * model.code_width();
  if (name == "pixels") return height * width * channels;
  if (name == "hog") return hog_dims(height, width);
  if (name == "onehot") return places * K;
  if (name == "histogram") return K;
  if (name == "pyramid") return (1 + kQuarters) * K;
  return places * (name.ends_with("_h") ? model.config().model.hidden : model.config().quantizer.dim);
}

// Features of one image from its codes (h, w).
void from_codes(std::string_view name, const int32_t* codes, int64_t h, int64_t w, int64_t K,
                float* features) {
  if (name == "onehot") {
    for (int64_t i = 0; i < h * w; ++i) features[i * K + codes[i]] = 1.0f;
    return;
  }
  const int64_t size = name == "pyramid" ? (1 + kQuarters) * K : K;
  for (int64_t y = 0; y < h; ++y)
    for (int64_t x = 0; x < w; ++x) {
      const int32_t code = codes[y * w + x];
      features[code] += 1.0f;
      if (size > K) features[(1 + 2 * (2 * y / h) + 2 * x / w) * K + code] += 1.0f;
    }
  for (int64_t i = 0; i < size; ++i) features[i] = std::sqrt(features[i]);
}

// Copies one batch's features into the matrix.
class BatchWriter {
 public:
  BatchWriter(TrainedModel& trained, const ImageRange& range)
      : model_(trained.model()), runtime_(trained.runtime()), range_(range) {}

  void write(std::string_view name, int64_t first, int64_t count, FeatureMatrix& matrix) const {
    float* to = matrix.values.data() + first * matrix.dims;
    if (find_feature(std::string(name)).source == FeatureSource::pixels)
      return write_image(name, first, count, to, matrix.dims);
    if (find_feature(std::string(name)).source == FeatureSource::codes) {
      const std::vector<int32_t> codes = to_host(View<const int32_t>(model_.quantizer().codes()), runtime_);
      const int64_t h = model_.code_height(), w = model_.code_width();
      for (int64_t i = 0; i < count; ++i)
        from_codes(name, codes.data() + i * h * w, h, w, model_.quantizer().codebook_size(),
                   to + i * matrix.dims);
      return;
    }
    const View<const float> tensor = name == "z_e"     ? model_.latents()
                                     : name == "z_q"   ? model_.quantized()
                                     : name == "enc_h" ? model_.encoder_hidden()
                                                       : model_.decoder_hidden();
    runtime_.download(to, tensor.data, count * matrix.dims * int64_t(sizeof(float)), runtime_.compute());
    runtime_.synchronize(runtime_.compute());
  }

 private:
  void write_image(std::string_view name, int64_t first, int64_t count, float* to, int64_t dims) const {
    const auto& [height, width, channels] = model_.shape();
    const int64_t size = height * width * channels;
    parallel_for(count, [&, h = height, w = width, c = channels](int64_t i, int) {
      const uint8_t* image = range_.set->pixels.data() + range_.place(first + i) * size;
      if (name == "hog") return hog(image, h, w, c, to + i * dims);
      for (int64_t p = 0; p < size; ++p) to[i * dims + p] = float(image[p]) / 255.0f;
    });
  }

  Model& model_;
  const Runtime& runtime_;
  const ImageRange range_;
};

void require_finite(const FeatureMatrix& matrix, const std::string& name) {
  for (size_t i = 0; i < matrix.values.size(); ++i)
    if (!std::isfinite(matrix.values[i]))
      throw Error(ErrorKind::failed,
                  fmt::format("feature {} of image {} is not finite", name, int64_t(i) / matrix.dims),
                  "the weights have diverged: use an earlier checkpoint", name);
}

}  // namespace

std::span<const FeatureEntry> feature_table() { return kFeatures; }

const FeatureEntry& find_feature(const std::string& name) {
  std::vector<std::string_view> names;
  for (const FeatureEntry& feature : kFeatures) {
    if (feature.name == name) return feature;
    names.push_back(feature.name);
  }
  const std::string near = nearest_name(name, names);
  throw Error(ErrorKind::usage, "unknown feature '" + name + "'",
              fmt::format("{}choose among {}", near.empty() ? "" : "did you mean " + near + "? ",
                          fmt::join(names, ", ")),
              "--features");
}

void require_feature(const TrainedModel& trained, const std::string& name) {
  const FeatureEntry& feature = find_feature(name);
  if (feature.source == FeatureSource::codes) trained.require_codes("feature " + name);
  if (feature.source == FeatureSource::decoder) trained.require_decoder("feature " + name);
  if (dims_of(name, trained.model()) == 0)
    throw Error(ErrorKind::usage, "the images are too small for feature " + name, "choose another feature",
                name);
}

std::vector<FeatureMatrix> extract_features(TrainedModel& trained, const ImageRange& range,
                                            const std::vector<std::string>& names) {
  Model& model = trained.model();
  const Runtime& runtime = trained.runtime();
  std::vector<FeatureMatrix> matrices;
  bool encodes = false, decodes = false;
  int64_t bytes = 0;
  for (const std::string& name : names) {
    const FeatureEntry& feature = find_feature(name);
    require_feature(trained, name);
    encodes |= feature.source != FeatureSource::pixels;
    decodes |= feature.source == FeatureSource::decoder;
    matrices.push_back({.rows = range.count(), .dims = dims_of(name, model), .values = {}});
    bytes += matrices.back().rows * matrices.back().dims * int64_t(sizeof(float));
  }
  if (bytes > available_bytes())
    throw Error(ErrorKind::resources, fmt::format("the features need {}", format_bytes(bytes)),
                "ask for one feature at a time, or for one with fewer dimensions", "--features");
  for (FeatureMatrix& matrix : matrices) matrix.values.resize(size_t(matrix.rows * matrix.dims));
  const BatchWriter writer(trained, range);
  Feeder feeder(runtime, model.batch(), *range.set);
  for (int64_t first = 0; first < range.count(); first += model.batch()) {
    const int64_t count = std::min(model.batch(), range.count() - first);
    if (encodes) quantize_batch(model, feeder, runtime, range, first);
    if (decodes) model.decode_hidden(runtime.compute());
    for (size_t i = 0; i < names.size(); ++i) writer.write(names[i], first, count, matrices[i]);
  }
  for (size_t i = 0; i < names.size(); ++i) require_finite(matrices[i], names[i]);
  return matrices;
}

}  // namespace vqlab
