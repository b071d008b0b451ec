#include "trained_model.hpp"

#include "data/labels.hpp"
#include "tuning.hpp"

namespace vqlab {

TrainedModel::TrainedModel(const std::string& run, const std::string& which, const std::string& device,
                           int64_t threads, Trust* trust, const WarningSink& warn,
                           const std::string& tuning_folder)
    : config_(load_run_config(run)),
      runtime_(device.empty() ? config_.device : device, int(threads < 0 ? config_.threads : threads)),
      checkpoint_(run, which),
      model_(config_, checkpoint_.facts().shape, kInferenceBatch, checkpoint_.facts().training_images,
             Mode::inference) {
  model_.allocate(runtime_);
  model_.set_variance(checkpoint_.facts().variance);
  checkpoint_.restore(model_, runtime_);
  if (model_.quantizer().codebook_size() == 0) return;
  if (runtime_.device() == Device::cpu) trust = nullptr;
  const auto& [height, width, channels] = checkpoint_.facts().shape;
  const VariantShape shape = quantizer_shape(config_, kInferenceBatch, height, width);
  const Tuning tuning(tuning_key(runtime_), tuning_folder);
  if (!tuning.note().empty()) warn(tuning.note());
  model_.use_kernels(choose_kernels(config_.kernels, runtime_.device(), shape, trust, warn, &tuning),
                     runtime_.device_name());
}

void TrainedModel::require_decoder(const std::string& command) const {
  if (model_.has_decoder()) return;
  throw Error(ErrorKind::usage, command + " needs a decoder, and this model was trained without",
              "use a run with loss.reconstruction_weight > 0", checkpoint_.directory());
}

void TrainedModel::require_codes(const std::string& command) const {
  if (model_.quantizer().codebook_size() == 0)
    throw Error(ErrorKind::usage, command + " needs codes, and this model is a plain autoencoder",
                "use a run of another quantizer.kind, for example \"vq_ema\"", checkpoint_.directory());
  if (!model_.quantizer().initialised())
    throw Error(ErrorKind::usage, "the codebook of this checkpoint is not initialised yet",
                "train further: k-means starts the codebook after the first few steps",
                checkpoint_.directory());
}

NamedSplit load_split(const Config& config, const std::string& name, const DataFacts& facts) {
  NamedSplit split{
      .set = load_image_set(config.data.kind, config.data.path, name == "test" ? Split::test : Split::train)};
  const ImageSet& set = split.set;
  const auto& [height, width, channels] = facts.shape;
  if (set.height != height || set.width != width || set.channels != channels)
    throw Error(ErrorKind::data,
                fmt::format("the images are {}x{}x{}, the model was trained on {}x{}x{}", set.height,
                            set.width, set.channels, height, width, channels),
                "restore the data that the run was trained on", config.data.path);
  if (config.loss.classifier_weight > 0.0 && !set.labels.empty())
    require_classes(set, config.classifier.classes, config.data.path);
  const int64_t training = name == "test" ? 0 : facts.training_images;
  split.begin = name == "validation" ? training : 0;
  split.end = name == "train" ? training : set.count;
  if (split.end > set.count || split.begin >= split.end)
    throw Error(ErrorKind::usage, fmt::format("the {} split has no images", name),
                name == "validation" ? "the run was trained with data.validation = 0: choose --split test"
                                     : "restore the data that the run was trained on",
                "--split " + name);
  return split;
}

}  // namespace vqlab
