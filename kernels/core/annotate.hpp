// Names for streams and for the parts of memory, given where they are made. A tool that watches the device
// reports them; elsewhere they are nothing.
#pragma once

#include "op.hpp"

namespace vqlab {

// The bytes from `memory`, which lie in one allocation. A later name for the same bytes replaces an earlier
// one. `name` is copied.
void name_memory(const void* memory, int64_t bytes, const char* name);
void name_stream(Stream stream, const char* name);

}  // namespace vqlab
