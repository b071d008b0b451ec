#include "environment.hpp"

#include <dnnl.h>
#include <fmt/core.h>

#include <fstream>

#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace

const char* version() { return VQLAB_VERSION; }

Json environment(const Runtime& runtime) {
  Json json = Json::object();
  json["vqlab"] = version();
  json["build"] = VQLAB_BUILD_TYPE;
  json["compiler"] = std::string("g++ ") + __VERSION__;
#if VQ_CUDA
  json["cuda"] = "built with " VQLAB_CUDA_VERSION;
#else
  json["cuda"] = "built without";
#endif
  json["device"] = runtime.device_name();
  json["note"] = runtime.note();
  json["threads"] = worker_count();
  json["processor"] = processor_name();
  const dnnl_version_t* dnnl = dnnl_version();
  Json library = Json::object();
  library["name"] = "oneDNN";
  library["version"] = fmt::format("{}.{}.{}", dnnl->major, dnnl->minor, dnnl->patch);
  json["libraries"].push_back(library);
  return json;
}

}  // namespace vqlab
