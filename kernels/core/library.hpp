// Optional CUDA libraries, opened when first needed. The binary depends on none of them, so that it starts
// where there is no CUDA, and it finds those that a Python environment brings.
#pragma once

#include <string>
#include <vector>

namespace vqlab {

// What became of one library. Exactly one of `path` and `problem` is "".
struct LibraryInfo {
  std::string name;     // as asked for: "libcudnn.so.9"
  std::string path;     // the file that was loaded
  std::string problem;  // one line why none was
};

// Opens the library once per process; never closed. Searched in this order: each folder of
// $VQLAB_CUDA_LIB_DIR (separated by colons); the NVIDIA wheels of $VIRTUAL_ENV and $CONDA_PREFIX;
// $CUDA_HOME/lib64; /usr/local/cuda/lib64; the system's loader. What it depends on is loaded from the same
// places before. Throws Error(device) that names the places.
void* open_library(const std::string& name);

// The address of one of its functions. Throws Error(device) if the library does not have it.
void* library_function(void* library, const std::string& name, const char* function);

// Every library that was asked for or loaded for another one, in that order.
std::vector<LibraryInfo> opened_libraries();

}  // namespace vqlab

// Fills one field of a function table whose fields are named as the library's functions:
// VQ_LIBRARY_FUNCTION(table, handle, "libcudnn.so.9", cudnnCreate)
#define VQ_LIBRARY_FUNCTION(table, library, name, function) \
  (table).function =                                        \
      reinterpret_cast<decltype(&::function)>(::vqlab::library_function(library, name, #function))
