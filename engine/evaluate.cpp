#include "evaluate.hpp"

#include <cmath>
#include <vector>

#include "kernels/core/parallel.hpp"
#include "quality.hpp"

namespace vqlab {
Json Evaluation::to_json() const {
  Json json = Json::object();
  json["images"] = images;
  json["mse"] = mse;
  json["nmse"] = nmse;
  json["psnr_db"] = psnr_db;
  json["psnr_db_mean"] = psnr_db_mean;
  json["ssim"] = ssim;
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
  model.load_images({}, stream);
  model.encode(stream);
  model.quantize(stream);
  model.require_finite_latents(runtime, first);
}

Evaluation evaluate(Model& model, const Runtime& runtime, const ImageRange& range, double variance,
                    bool with_ssim, const BatchVisitor& visit) {
  const Stream stream = runtime.compute();
  const int64_t B = model.batch(), K = model.quantizer().codebook_size();
  const auto& [height, width, channels] = model.shape();
  const double pixels = double(height * width * channels);
  Feeder feeder(runtime, B, *range.set);
  const int64_t codes_per_image = model.quantizer().codes().size() / B;
  std::vector<int64_t> counts(static_cast<size_t>(K));
  std::vector<double> similarity(static_cast<size_t>(B));

  Evaluation result{
      .images = range.count(), .codebook_size = K, .initialised = model.quantizer().initialised()};
  for (int64_t first = 0; first < range.count(); first += B) {
    const int64_t count = std::min(B, range.count() - first);
    quantize_batch(model, feeder, runtime, range, first);
    model.decode(stream);
    model.measure_loss(stream);
    const std::vector<float> squared_error = to_host(model.squared_error(), runtime);
    const std::vector<int32_t> codes = to_host(View<const int32_t>(model.quantizer().codes()), runtime);
    for (int64_t i = 0; i < count; ++i) {
      result.mse += double(squared_error[size_t(i)]);
      result.psnr_db_mean += psnr_db(double(squared_error[size_t(i)]) / pixels);
    }
    if (with_ssim) {
      const HostImages input = images_to_host(model.input(), channels, runtime);
      const HostImages reconstruction = images_to_host(model.reconstruction(), channels, runtime);
      parallel_for(count, [&](int64_t i, int) {
        similarity[size_t(i)] = ssim(input.image(i), reconstruction.image(i), height, width);
      });
      for (int64_t i = 0; i < count; ++i) result.ssim += similarity[size_t(i)];
    }
    if (result.initialised)
      for (int64_t i = 0; i < count * codes_per_image; ++i) ++counts[size_t(codes[size_t(i)])];
    if (visit) visit(first, count);
  }
  const double n = double(range.count());
  result.mse /= n * pixels;
  result.nmse = result.mse / variance;
  result.psnr_db = psnr_db(result.mse);
  result.psnr_db_mean /= n;
  result.ssim = with_ssim ? result.ssim / n : std::nan("");
  if (K > 0) {
    result.usage = usage_of(counts.data(), K);
    result.bits_per_image_nominal = double(codes_per_image) * std::log2(double(K));
    result.bits_per_image_entropy =
        double(codes_per_image) * std::log2(std::max(1.0, result.usage.perplexity));
  }
  return result;
}

}  // namespace vqlab
