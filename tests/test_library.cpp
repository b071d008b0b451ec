// Where CUDA libraries are looked for.
#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "expect_error.hpp"
#include "kernels/core/library.hpp"
#include "testing.hpp"

namespace vqlab::testing {
namespace {

// Sets an environment variable for the life of this object.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Environment() { before_.empty() ? unsetenv(name_) : setenv(name_, before_.c_str(), 1); }

 private:
  const char* name_;
  std::string before_;
};

// Makes `folder`/`name` stand for the C library, which can certainly be loaded.
void plant_library(const std::string& folder, const std::string& name) {
  Dl_info info{};
  REQUIRE(dladdr(reinterpret_cast<void*>(&std::getenv), &info) != 0);
  std::filesystem::create_directories(folder);
  std::filesystem::create_symlink(std::filesystem::canonical(info.dli_fname), folder + "/" + name);
}

LibraryInfo info_of(const std::string& name) {
  for (const LibraryInfo& info : opened_libraries())
    if (info.name == name) return info;
  return {name, "", "never asked for"};
}

}  // namespace

TEST_CASE("library: VQLAB_CUDA_LIB_DIR is a list of folders, searched first", "[unit]") {
  const TemporaryDirectory first, second;
  plant_library(second / "lib", "libvqlab-listed.so");
  plant_library(first / "lib/python3.12/site-packages/nvidia/cudnn/lib", "libvqlab-listed.so");
  const Environment list("VQLAB_CUDA_LIB_DIR", (first / "absent") + ":" + (second / "lib"));
  const Environment python("VIRTUAL_ENV", first / "");
  CHECK(open_library("libvqlab-listed.so") != nullptr);
  CHECK(info_of("libvqlab-listed.so").path == second / "lib/libvqlab-listed.so");
  CHECK(info_of("libvqlab-listed.so").problem == "");
}

TEST_CASE("library: the wheels of a Python environment are searched", "[unit]") {
  const TemporaryDirectory environment;
  const std::string folder = environment / "lib/python3.12/site-packages/nvidia/cu13/lib";
  plant_library(folder, "libvqlab-wheel.so");
  const Environment python("VIRTUAL_ENV", environment / "");
  CHECK(open_library("libvqlab-wheel.so") != nullptr);
  CHECK(std::filesystem::equivalent(info_of("libvqlab-wheel.so").path, folder + "/libvqlab-wheel.so"));
}

TEST_CASE("library: one that is nowhere is an error that names the places", "[unit]") {
  const TemporaryDirectory folder;
  const Environment list("VQLAB_CUDA_LIB_DIR", folder / "");
  const auto open = [] { open_library("libvqlab-absent.so.1"); };
  require_error(ErrorKind::device, folder / "", "libvqlab-absent.so.1", open);
  require_error(ErrorKind::device, folder / "", "libvqlab-absent.so.1", open);  // remembered
  CHECK(info_of("libvqlab-absent.so.1").path == "");
  CHECK(info_of("libvqlab-absent.so.1").problem != "");
}

TEST_CASE("library: a function that is not in it is an error that names it", "[unit]") {
  const TemporaryDirectory folder;
  plant_library(folder / "lib", "libvqlab-functions.so");
  const Environment list("VQLAB_CUDA_LIB_DIR", folder / "lib");
  void* const library = open_library("libvqlab-functions.so");
  CHECK(library_function(library, "libvqlab-functions.so", "getenv") != nullptr);
  require_error(ErrorKind::device, "no_such_function", "libvqlab-functions.so",
                [&] { library_function(library, "libvqlab-functions.so", "no_such_function"); });
}

}  // namespace vqlab::testing
