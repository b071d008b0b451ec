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

void quantize_batch(Model& model, Feeder& feeder, const Runtime& runtime, const ImageRange& range,
                    int64_t first) {
  const Stream stream = runtime.compute();
  feeder.pick_in_order(range, first);
  feeder.fill(*range.set);
  feeder.upload(model);
  model.load_images(stream);
  model.encode(stream);
  model.quantize(stream);
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

void add_reconstruction(Evaluation& result, const Model& model, const Runtime& runtime, int64_t count,
                        bool with_ssim) {
  const auto& [height, width, channels] = model.shape();
  const std::vector<float> squared_error = to_host(model.squared_error(), runtime);
  for (int64_t i = 0; i < count; ++i) {
    result.mse += double(squared_error[size_t(i)]);
    result.psnr_db_mean += psnr_db(double(squared_error[size_t(i)]) / double(height * width * channels));
  }
  if (!with_ssim) return;
  const HostImages input = images_to_host(model.input(), channels, runtime);
  const HostImages reconstruction = images_to_host(model.reconstruction(), channels, runtime);
  std::vector<double> similarity(static_cast<size_t>(count));
  parallel_for(count, [&, h = height, w = width](int64_t i, int) {
    similarity[size_t(i)] = ssim(input.image(i), reconstruction.image(i), h, w);
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
  for (int64_t first = 0; first < range.count(); first += B) {
    const int64_t count = std::min(B, range.count() - first);
    quantize_batch(model, feeder, runtime, range, first);
    model.decode(stream);
    model.classify(stream);
    model.measure_loss(stream);
    if (model.has_decoder()) add_reconstruction(result, model, runtime, count, with_ssim);
    if (const Classifier* classifier = model.classifier()) {
      const std::vector<int32_t> correct = to_host(classifier->correct(), runtime);
      for (int64_t i = 0; i < count; ++i) {
        result.labelled += correct[size_t(i)] >= 0;
        result.accuracy += correct[size_t(i)] == 1;
      }
    }
    if (result.initialised && K > 0) {
      const std::vector<int32_t> codes = to_host(View<const int32_t>(model.quantizer().codes()), runtime);
      for (int64_t i = 0; i < count * codes_per_image; ++i) ++counts[size_t(codes[size_t(i)])];
    }
    if (visit) visit(first, count);
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
