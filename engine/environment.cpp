#include "environment.hpp"

#include <dnnl.h>
#include <fmt/core.h>

#include <fstream>
#include <utility>

#include "kernels/core/library.hpp"
#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

// Both libraries tell their version in the same way, 9.14.1 as 91401.
constexpr std::pair<std::string_view, const char*> kVersionFunctions[] = {
    {"libcudnn.so.9", "cudnnGetVersion"}, {"libcublasLt.so.13", "cublasLtGetVersion"}};

std::string library_version(const std::string& name) {
  for (const auto& [library, function] : kVersionFunctions) {
    if (library != name) continue;
    const auto get = reinterpret_cast<size_t (*)()>(library_function(open_library(name), name, function));
    const size_t version = get();
    return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  }
  return "";
}

}  // namespace

const char* version() { return VQLAB_VERSION; }

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

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
  if (runtime.device() == Device::cuda) {
    json["gpu"] = cuda_devices().empty() ? runtime.device_name() : cuda_devices().front();
    const Json opened = opened_cuda_libraries();
    for (const Json& entry : opened.items()) json["libraries"].push_back(entry);
  }
  return json;
}

Json opened_cuda_libraries() {
  Json list = Json::array();
  for (const LibraryInfo& info : opened_libraries()) {
    Json entry = Json::object();
    entry["name"] = info.name;
    entry["version"] = info.problem.empty() ? library_version(info.name) : "";
    if (info.problem.empty())
      entry["path"] = info.path;
    else
      entry["problem"] = info.problem;
    list.push_back(entry);
  }
  return list;
}

Json find_cuda_libraries() {
  if constexpr (!kWithCuda) return Json::array();
  for (const auto& [library, function] : kVersionFunctions) {
    try {
      open_library(std::string(library));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::device) throw;
    }  // opened_libraries() has the reason
  }
  return opened_cuda_libraries();
}

}  // namespace vqlab
