#include "library.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "check.hpp"

namespace vqlab {
namespace {

namespace fs = std::filesystem;

// Each needs some of those before it. Loading them first, from one place, keeps a library from picking up its
// dependency in another version from elsewhere.
constexpr const char* kLoadOrder[] = {"libcublasLt.so.13", "libcublas.so.13", "libnvJitLink.so.13",
                                      "libnvrtc.so.13", "libcudnn.so.9"};

// Folders below site-packages/nvidia that hold a `lib`: one for all of CUDA 13, and one each in older wheels.
constexpr const char* kWheels[] = {"cu13", "cudnn", "nccl", "cublas", "cuda_nvrtc", "nvjitlink"};

std::string environment_value(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void add_folder(std::vector<std::string>& folders, const fs::path& folder) {
  std::error_code ignored;
  if (fs::is_directory(folder, ignored)) folders.push_back(folder.string());
}

void add_environment_folders(std::vector<std::string>& folders, const std::string& prefix) {
  if (prefix.empty()) return;
  std::error_code ignored;
  std::vector<fs::path> pythons;
  for (const fs::directory_entry& entry : fs::directory_iterator(fs::path(prefix) / "lib", ignored))
    if (entry.path().filename().string().starts_with("python3")) pythons.push_back(entry.path());
  std::sort(pythons.begin(), pythons.end());
  for (const fs::path& python : pythons)
    for (const char* wheel : kWheels)
      add_folder(folders, python / "site-packages" / "nvidia" / wheel / "lib");
}

std::vector<std::string> search_folders() {
  std::vector<std::string> folders;
  const std::string listed = environment_value("VQLAB_CUDA_LIB_DIR");
  for (size_t begin = 0; begin < listed.size();) {
    const size_t end = std::min(listed.find(':', begin), listed.size());
    add_folder(folders, listed.substr(begin, end - begin));
    begin = end + 1;
  }
  const std::string conda = environment_value("CONDA_PREFIX"), cuda_home = environment_value("CUDA_HOME");
  add_environment_folders(folders, environment_value("VIRTUAL_ENV"));
  add_environment_folders(folders, conda);
  if (!conda.empty()) add_folder(folders, fs::path(conda) / "lib");
  if (!cuda_home.empty()) add_folder(folders, fs::path(cuda_home) / "lib64");
  add_folder(folders, "/usr/local/cuda/lib64");
  return folders;
}

std::string loaded_path(void* library, const std::string& name) {
  link_map* map = nullptr;
  return dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr ? map->l_name : name;
}

struct OpenedLibrary {
  void* handle;
  LibraryInfo info;
};

// Global, so that a library opened later finds the symbols of the one before.
OpenedLibrary try_open(const std::string& name) {
  constexpr int kFlags = RTLD_NOW | RTLD_GLOBAL;
  std::string tried;
  for (const std::string& folder : search_folders()) {
    const std::string path = folder + "/" + name;
    std::error_code ignored;
    const bool exists = fs::exists(path, ignored);
    if (exists)
      if (void* handle = dlopen(path.c_str(), kFlags)) return {handle, {name, path, ""}};
    tried += exists ? fmt::format("{}, ", dlerror()) : fmt::format("not in {}, ", folder);
  }
  if (void* handle = dlopen(name.c_str(), kFlags)) return {handle, {name, loaded_path(handle, name), ""}};
  return {nullptr, {name, "", tried + dlerror()}};
}

class Libraries {
 public:
  // Tried once: a failure is remembered too.
  const OpenedLibrary& open(const std::string& name) {
    for (const OpenedLibrary& library : opened_)
      if (library.info.name == name) return library;
    opened_.push_back(try_open(name));
    return opened_.back();
  }
  const std::vector<OpenedLibrary>& opened() const { return opened_; }

  std::mutex mutex;

 private:
  std::vector<OpenedLibrary> opened_;
};

Libraries& libraries() {
  static Libraries& instance = *new Libraries;  // used until the very end of the process
  return instance;
}

}  // namespace

void* open_library(const std::string& name) {
  const std::lock_guard lock(libraries().mutex);
  const auto at = std::find(std::begin(kLoadOrder), std::end(kLoadOrder), name);
  if (at != std::end(kLoadOrder))
    for (auto before = std::begin(kLoadOrder); before != at; ++before) libraries().open(*before);
  const OpenedLibrary& library = libraries().open(name);
  if (library.handle == nullptr)
    throw Error(
        ErrorKind::device, fmt::format("{} cannot be loaded: {}", name, library.info.problem),
        "install it (pip: nvidia-cudnn-cu13, nvidia-cublas, nvidia-cuda-nvrtc), or name its folder in "
        "VQLAB_CUDA_LIB_DIR",
        name);
  return library.handle;
}

void* library_function(void* library, const std::string& name, const char* function) {
  void* const address = dlsym(library, function);
  if (address == nullptr)
    throw Error(ErrorKind::device, fmt::format("{} has no function {}", name, function),
                "use a newer version of it", name);
  return address;
}

std::vector<LibraryInfo> opened_libraries() {
  const std::lock_guard lock(libraries().mutex);
  std::vector<LibraryInfo> infos;
  for (const OpenedLibrary& library : libraries().opened()) infos.push_back(library.info);
  return infos;
}

}  // namespace vqlab
