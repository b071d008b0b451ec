#include "evaluate.hpp"

#include <cmath>
#include <vector>

#include "kernels/core/parallel.hpp"
#include "quality.hpp"

namespace vqlab {

Json Evaluation::to_json() const {
  const auto measured = [this](double figure) { return has_decoder ? Json(figure) : Json(); };
  Json json = Json::object();
  json["images"] = images;
  json["mse"] = measured(mse);
  json["nmse"] = measured(nmse);
  json["psnr_db"] = measured(psnr_db);
  json["psnr_db_mean"] = measured(psnr_db_mean);
  json["ssim"] = measured(ssim);
  if (labelled > 0) json["accuracy"] = accuracy;
  const bool codes = codebook_size > 0 && initialised;
  json["codes_used"] = codes ? Json(usage.used) : Json();
  json["codebook_size"] = codebook_size > 0 ? Json(codebook_size) : Json();
  json["perplexity"] = codes ? Json(usage.perplexity) : Json();
  json["bits_per_image_nominal"] = codes ? Json(bits_per_image_nominal) : Json();
  json["bits_per_image_entropy"] = codes ? Json(bits_per_image_entropy) : Json();
  return json;
}

namespace {

// As quantize_batch, but without waiting for the device.
void start_quantizing(Model& model, Feeder& feeder, const Runtime& runtime, const ImageRange& range,
                      int64_t first) {
  const Stream stream = runtime.compute();
  feeder.pick_in_order(range, first);
  feeder.fill(*range.set);
  feeder.upload(model);
  model.load_images(stream);
  model.encode(stream);
  model.quantize(stream);
}

}  // namespace

void quantize_batch(Model& model, Feeder& feeder, const Runtime& runtime, const ImageRange& range,
                    int64_t first) {
  start_quantizing(model, feeder, runtime, range, first);
  model.require_finite_latents(runtime, first);
}

namespace {

// While it lives, the model computes with its averaged weights.
class AveragedWeights {
 public:
  AveragedWeights(Model& model, Stream stream) : model_(model), stream_(stream) {
    model.swap_averages(stream);
  }
  ~AveragedWeights() {
    try {
      model_.swap_averages(stream_);
    } catch (const Error&) {  // of a device that has failed before, which has been or will be said
    }
  }
  AveragedWeights(const AveragedWeights&) = delete;
  AveragedWeights& operator=(const AveragedWeights&) = delete;

 private:
  Model& model_;
  const Stream stream_;
};

// What the host needs of a batch; empty what the model does not have.
struct BatchOnHost {
  BatchOnHost(const Model& model, const Runtime& runtime, bool with_ssim) {
    const int64_t channels = model.shape().channels;
    if (model.has_decoder()) squared_error = to_host(model.squared_error(), runtime);
    if (model.has_decoder() && with_ssim) {
      input = images_to_host(model.input(), channels, runtime);
      reconstruction = images_to_host(model.reconstruction(), channels, runtime);
    }
    if (model.classifier() != nullptr) correct = to_host(model.classifier()->correct(), runtime);
    if (model.quantizer().initialised() && model.quantizer().codebook_size() > 0)
      codes = to_host(View<const int32_t>(model.quantizer().codes()), runtime);
  }

  std::vector<float> squared_error;
  HostImages input, reconstruction;
  std::vector<int32_t> correct, codes;
};

void add_reconstruction(Evaluation& result, const BatchOnHost& batch, const ImageShape& shape,
                        int64_t count) {
  const auto& [height, width, channels] = shape;
  for (int64_t i = 0; i < count; ++i) {
    const double squared_error = double(batch.squared_error[size_t(i)]);
    result.mse += squared_error;
    result.psnr_db_mean += psnr_db(squared_error / double(height * width * channels));
  }
  if (batch.input.values.empty()) return;
  std::vector<double> similarity(static_cast<size_t>(count));
  parallel_for(count, [&, h = height, w = width](int64_t i, int) {
    similarity[size_t(i)] = ssim(batch.input.image(i), batch.reconstruction.image(i), h, w);
  });
  for (const double s : similarity) result.ssim += s;
}

// Sums over the images become figures.
void finish(Evaluation& result, const Model& model, double variance, bool with_ssim) {
  const auto& [height, width, channels] = model.shape();
  const double n = double(result.images);
  result.mse /= n * double(height * width * channels);
  result.nmse = result.mse / variance;
  result.psnr_db = psnr_db(result.mse);
  result.psnr_db_mean /= n;
  result.ssim = with_ssim ? result.ssim / n : std::nan("");
  if (!result.has_decoder)
    result.mse = result.nmse = result.psnr_db = result.psnr_db_mean = result.ssim = std::nan("");
  result.accuracy = result.labelled > 0 ? result.accuracy / double(result.labelled) : std::nan("");
}

}  // namespace

Evaluation evaluate(Model& model, const Runtime& runtime, const ImageRange& range, double variance,
                    bool with_ssim, const BatchVisitor& visit) {
  const Stream stream = runtime.compute();
  const AveragedWeights averaged(model, stream);
  const int64_t B = model.batch(), K = model.quantizer().codebook_size();
  Feeder feeder(runtime, B, *range.set);
  const int64_t codes_per_image = model.quantizer().codes().size() / B;
  std::vector<int64_t> counts(static_cast<size_t>(K));

  Evaluation result{.images = range.count(),
                    .has_decoder = model.has_decoder(),
                    .codebook_size = K,
                    .initialised = model.quantizer().initialised()};
  const auto start = [&](int64_t first) {
    if (first >= range.count()) return;
    start_quantizing(model, feeder, runtime, range, first);
    model.decode(stream);
    model.classify(stream);
    model.measure_loss(stream);
  };
  start(0);
  for (int64_t first = 0; first < range.count(); first += B) {
    const int64_t count = std::min(B, range.count() - first);
    model.require_finite_latents(runtime, first);
    const BatchOnHost batch(model, runtime, with_ssim);
    if (visit) visit(first, count);
    start(first + B);  // the device computes while the host counts and compares images
    if (model.has_decoder()) add_reconstruction(result, batch, model.shape(), count);
    for (int64_t i = 0; i < count && !batch.correct.empty(); ++i) {
      result.labelled += batch.correct[size_t(i)] >= 0;
      result.accuracy += batch.correct[size_t(i)] == 1;
    }
    for (int64_t i = 0; i < count * codes_per_image && !batch.codes.empty(); ++i)
      ++counts[size_t(batch.codes[size_t(i)])];
  }
  finish(result, model, variance, with_ssim);
  if (K > 0) {
    result.usage = usage_of(counts.data(), K);
    result.bits_per_image_nominal = double(codes_per_image) * std::log2(double(K));
    result.bits_per_image_entropy =
        double(codes_per_image) * std::log2(std::max(1.0, result.usage.perplexity));
  }
  return result;
}

}  // namespace vqlab
