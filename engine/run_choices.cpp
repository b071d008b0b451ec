#include "run_choices.hpp"

#include "trust.hpp"
#include "tuning.hpp"

namespace vqlab {

KernelChoice choose_kernels_of_run(const Config& config, const ImageSet& images, const Runtime& runtime,
                                   Trust* trust, const std::string& tuning_folder, RunMessages& messages) {
  if (config.quantizer.kind == "none") return {};
  const Tuning tuning(tuning_key(runtime), tuning_folder);
  if (!tuning.note().empty()) messages.note(tuning.note());
  const KernelChoice kernels = choose_kernels(
      config.kernels, runtime.device(),
      quantizer_shape(config, config.train.batch_size, images.height, images.width), trust,
      [&](const std::string& line) { messages.warning(line); }, &tuning);
  if (trust != nullptr && !trust->note().empty()) messages.note(trust->note());
  return kernels;
}

KernelChoice kernels_as_before(const RunKernels& used, const KernelChoice& chosen, const Runtime& runtime,
                               Trust* trust) {
  return used.device == runtime.device_name() ? find_kernels(used, runtime.device(), trust) : chosen;
}

void use_kernels_of_run(const KernelChoice& kernels, Model& model, const Runtime& runtime,
                        RunMessages& messages) {
  if (model.quantizer().codebook_size() == 0) return;
  model.use_kernels(kernels, runtime.device_name());
  const std::string lookup =
      model.quantizer().looks_up() ? fmt::format("lookup {}, ", model.kernels().lookup) : "";
  messages.note(fmt::format("kernels: {}cluster_sums {}", lookup, model.kernels().cluster_sums));
}

void choose_plans_of_run(const Config& config, Model& model, const Runtime& runtime, RunMessages& messages) {
  ConvBook& book = model.convolution_book();
  if (runtime.device() == Device::cpu) return;
  if (book.device == runtime.device_name()) {
    use_convolutions(model, book);
    if (const std::string change = library_change(book); !change.empty()) messages.warning(change);
    return;
  }
  if (!book.device.empty())
    messages.note(fmt::format("the run was on {}: convolution plans are chosen anew on {}", book.device,
                              runtime.device_name()));
  book = choose_convolutions(model, runtime, parse_choosing(config.train.convolutions), event_timer(runtime));
}

}  // namespace vqlab
