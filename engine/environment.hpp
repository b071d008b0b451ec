// What a result depends on beside its configuration: version, build, machine, libraries.
#pragma once

#include "io/json.hpp"
#include "runtime.hpp"

namespace vqlab {

// "0.1.0"
const char* version();

// Keys: vqlab, build, compiler, cuda, device, note, threads, processor, libraries[{name, version}].
Json environment(const Runtime& runtime);

}  // namespace vqlab
