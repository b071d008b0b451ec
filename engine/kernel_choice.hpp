// Which variant of each op with several a run uses: forced by the configuration, or what was measured to be
// the fastest at its shape, or the first of the op's table, as long as it can be trusted here. Kernels obey;
// this chooses, once, and a run's checkpoints keep the names.
#pragma once

#include <functional>
#include <string>

#include "config.hpp"
#include "io/json.hpp"
#include "kernels/codebook/cluster_sums.hpp"
#include "kernels/codebook/lookup.hpp"
#include "variant_case.hpp"

namespace vqlab {

class Trust;
class Tuning;

// Null: the first of the table that supports the shape.
struct KernelChoice {
  const LookupVariant* lookup = nullptr;
  const ClusterSumsVariant* cluster_sums = nullptr;
};

// The same as a run's checkpoints keep it.
struct RunKernels {
  std::string device;  // "cpu" or the name of the GPU; "": nothing has been chosen
  std::string lookup, cluster_sums;

  Json to_json() const;
  static RunKernels from_json(const Json& json);
};
RunKernels names_of(const KernelChoice& choice, const std::string& device_name);

// (N, K, D) of a batch of images.
VariantShape quantizer_shape(const Config& config, int64_t batch, int64_t height, int64_t width);

using WarningSink = std::function<void(const std::string& line)>;

// What the run used on this device before, for bit-exact resumption. Throws Error(checkpoint) if a variant is
// not in this program, Error(device) if `trust` finds that one of them fails here now.
KernelChoice find_kernels(const RunKernels& used, Device device, Trust* trust);

// For latents of this shape; what `tuning` found fastest there is tried first. Without `trust` (the CPU needs
// none) nothing is tested. Each variant that is passed over because of its self-test, or forced in spite of
// it, is one warning. Throws Error(usage) for an unknown name, or a forced variant that does not support the
// shape; Error(device) if no variant can be trusted.
KernelChoice choose_kernels(const KernelsConfig& wanted, Device device, const VariantShape& shape,
                            Trust* trust, const WarningSink& warn, const Tuning* tuning = nullptr);

}  // namespace vqlab
