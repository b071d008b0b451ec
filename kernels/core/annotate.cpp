#include "annotate.hpp"

namespace vqlab {

void name_memory(const void*, int64_t, const char*) {}
void name_stream(Stream, const char*) {}

}  // namespace vqlab
