// What a run settles on a device before its first step: kernel variants and convolution plans.
#pragma once

#include <string>

#include "data/image_set.hpp"
#include "kernel_choice.hpp"
#include "model.hpp"

namespace vqlab {

// Who hears of it.
class RunMessages {
 public:
  virtual ~RunMessages() = default;
  virtual void note(const std::string& line) = 0;  // a line about the run as a whole
  virtual void warning(const std::string& line) = 0;
};

// The fastest variants that were measured here (`tuning_folder` as in TrainOptions), or the best of each
// table, for the batches of a run. Before the model takes its memory, since a self-test needs some. None for
// a plain autoencoder. Throws as choose_kernels() does.
KernelChoice choose_kernels_of_run(const Config& config, const ImageSet& images, const Runtime& runtime,
                                   Trust* trust, const std::string& tuning_folder, RunMessages& messages);

// Those that a run `used` before, so that it goes on to the same bits, if that was on this device; else
// `chosen`. Throws as find_kernels() does.
KernelChoice kernels_as_before(const RunKernels& used, const KernelChoice& chosen, const Runtime& runtime,
                               Trust* trust);

void use_kernels_of_run(const KernelChoice& kernels, Model& model, const Runtime& runtime,
                        RunMessages& messages);

// The plans in the model's convolution_book(), if they are of this model of GPU, else new ones, which the
// book then has. The CPU needs none, and keeps the GPU's. The model is allocated.
void choose_plans_of_run(const Config& config, Model& model, const Runtime& runtime, RunMessages& messages);

}  // namespace vqlab
