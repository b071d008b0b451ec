// What the commands on a trained run share.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "command.hpp"
#include "engine/trained_model.hpp"
#include "engine/trust.hpp"

namespace vqlab {

// Loads a run with the command line's device and threads; warnings of the checkpoint go to stderr.
inline std::unique_ptr<TrainedModel> load_trained(const std::string& run, const std::string& checkpoint,
                                                  const CommonOptions& common) {
  const std::string device = common.device_given ? common.device : "";
  const auto warn = [](const std::string& line) { std::fprintf(stderr, "warning: %s\n", line.c_str()); };
  const std::unique_ptr<Trust> trust =
      trust_of_this_program(device.empty() ? load_run_config(run).device : device);
  auto trained = std::make_unique<TrainedModel>(
      run, checkpoint, device, common.threads_given ? common.threads : -1, trust.get(), warn, cache_folder());
  for (const std::string& line : trained->checkpoint().warnings()) warn(line);
  return trained;
}

// Creates a directory for pictures; throws Error(usage) or Error(resources).
void make_output_directory(const std::string& path);

// "image-00042-reconstruction.png" in the directory.
std::string picture_path(const std::string& directory, int64_t index, const char* what);

}  // namespace vqlab
