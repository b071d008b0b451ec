#include "inference.hpp"

#include "evaluate.hpp"

namespace vqlab {

std::vector<int32_t> encode_images(TrainedModel& trained, const ImageRange& range) {
  trained.require_codes("encode");
  Model& model = trained.model();
  const Runtime& runtime = trained.runtime();
  const Stream stream = runtime.compute();
  const View<int32_t> batch_codes = model.quantizer().codes();
  const int64_t B = model.batch(), codes_per_image = batch_codes.size() / B;
  std::vector<int32_t> codes(size_t(range.count() * codes_per_image));
  Feeder feeder(runtime, B, *range.set);
  for (int64_t first = 0; first < range.count(); first += B) {
    quantize_batch(model, feeder, runtime, range, first);
    const int64_t count = std::min(B, range.count() - first);
    runtime.download(codes.data() + first * codes_per_image, batch_codes.data,
                     count * codes_per_image * int64_t(sizeof(int32_t)), stream);
    runtime.synchronize(stream);
  }
  return codes;
}

void decode_codes(TrainedModel& trained, const std::vector<int32_t>& codes, int64_t count,
                  const ImageVisitor& visit) {
  trained.require_codes("decode");
  trained.require_decoder("decode");
  Model& model = trained.model();
  const Runtime& runtime = trained.runtime();
  const Stream stream = runtime.compute();
  const View<int32_t> batch_codes = model.quantizer().codes();
  const int64_t B = model.batch(), codes_per_image = batch_codes.size() / B;
  const int64_t K = model.quantizer().codebook_size();
  VQ_REQUIRE(int64_t(codes.size()) == count * codes_per_image, "{} codes for {} images", codes.size(), count);
  for (size_t i = 0; i < codes.size(); ++i)
    if (codes[i] < 0 || codes[i] >= K)
      throw Error(ErrorKind::data,
                  fmt::format("code {} of image {} is not in the codebook of {}", codes[i],
                              int64_t(i) / codes_per_image, K),
                  "decode with the run that encoded", "codes");
  std::vector<int32_t> batch(size_t(batch_codes.size()));
  for (int64_t first = 0; first < count; first += B) {
    const int64_t valid = std::min(B, count - first);
    std::copy_n(codes.begin() + first * codes_per_image, valid * codes_per_image, batch.begin());
    runtime.upload(batch_codes.data, batch.data(), batch_codes.bytes(), stream);
    model.quantizer().decode(stream);
    model.decode(stream);
    const HostImages images = images_to_host(model.reconstruction(), model.shape().channels, runtime);
    for (int64_t i = 0; i < valid; ++i) visit(first + i, images.image(i));
  }
}

}  // namespace vqlab
