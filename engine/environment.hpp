// What a result depends on beside its configuration: version, build, machine, libraries.
#pragma once

#include <string>

#include "io/json.hpp"
#include "runtime.hpp"

namespace vqlab {

// "0.1.0"
const char* version();

// The CPU's, as the system calls it.
std::string processor_name();

// Keys: vqlab, build, compiler, cuda, device, note, threads, processor, libraries[{name, version, path?}]; on
// a GPU also gpu (its memory, cache and driver), and its libraries among the others.
Json environment(const Runtime& runtime);

// The CUDA libraries that this process has tried to open, [{name, version, path}] or
// [{name, version, problem}]. The version is "" of one that is absent or that only others need.
Json opened_cuda_libraries();

// The same after opening those that the CUDA kernels use; [] in a build without CUDA.
Json find_cuda_libraries();

}  // namespace vqlab
