// What cuDNN offers for our convolutions on the GPUs that we care about. Its heuristics answer for a device
// that is described to them, so this needs cuDNN but no GPU.
#include <dlfcn.h>

#include <bit>
#include <cstdlib>
#include <filesystem>

#include "engine/config.hpp"
#include "expect_error.hpp"
#include "kernels/conv/conv_plans.hpp"
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

// Device properties in cuDNN's schema. Only what differs between the two cards is a parameter.
std::string hopper_card(const char* name, int64_t memory, int64_t memory_clock, int64_t l2_cache) {
  return fmt::format(
      R"({{"cudnn_version":{},"deviceVer":900,"driverVer":13000,"cudaDeviceId":0,"totalGlobalMem":{},)"
      R"("maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,)"
      R"("multiProcessorCount":132,"warpSize":32,"maxSharedMemoryPerBlock":49152,)"
      R"("maxSharedMemoryPerBlockOptin":232448,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,)"
      R"("maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,)"
      R"("supportCoopLaunch":1,"smClockRateKHz":1980000,"memClockRateKHz":{},"l2CacheSize":{},)"
      R"("deviceName":"{}"}})",
      cudnn().cudnnGetVersion(), memory, memory_clock, l2_cache, name);
}

struct Card {
  const char* name;
  CudnnDescriptor properties;
};

std::vector<Card> cards() {
  std::vector<Card> list;
  list.push_back(
      {"H100", cudnn_device(hopper_card("NVIDIA H100 80GB HBM3", 85029158912, 2619000, 52428800))});
  list.push_back({"H200", cudnn_device(hopper_card("NVIDIA H200", 150754820096, 3201000, 62914560))});
  return list;
}

struct ConvLayer {
  std::string name;
  View<const float> input, output;
  ConvGeometry geometry;
};

// The convolutions of a config's net, in order, for images whose channels are padded to `image_channels`.
std::vector<ConvLayer> convolutions(const Config& config, int64_t side, int64_t image_channels) {
  constexpr ConvGeometry kHalve{.kernel = 4, .stride = 2, .padding = 1};
  constexpr ConvGeometry kDouble{.kind = ConvKind::transposed, .kernel = 4, .stride = 2, .padding = 1};
  constexpr ConvGeometry kSame{.kernel = 3, .stride = 1, .padding = 1}, kPoint{.kernel = 1};
  const ModelConfig& m = config.model;
  const int64_t stages = std::countr_zero(uint64_t(m.downsampling));
  const auto stage_channels = [&](int64_t i) { return i == 0 && stages > 1 ? m.hidden / 2 : m.hidden; };
  std::vector<ConvLayer> layers;
  int64_t height = (side + m.downsampling - 1) / m.downsampling * m.downsampling, channels = image_channels;
  const auto add = [&](const std::string& name, const ConvGeometry& geometry, int64_t next) {
    const int64_t B = config.train.batch_size, output = geometry.output_side(height);
    layers.push_back(
        {name, {nullptr, {B, height, height, channels}}, {nullptr, {B, output, output, next}}, geometry});
    height = output;
    channels = next;
  };
  const auto add_residual = [&](const char* part) {
    add(fmt::format("{}.residual.conv1", part), kSame, m.residual_hidden);
    add(fmt::format("{}.residual.conv2", part), kPoint, m.hidden);
  };
  for (int64_t i = 0; i < stages; ++i) add(fmt::format("encoder.conv{}", i + 1), kHalve, stage_channels(i));
  add(fmt::format("encoder.conv{}", stages + 1), kSame, m.hidden);
  add_residual("encoder");
  add("quant_conv", kPoint, config.quantizer.dim);
  add("decoder.conv1", kSame, m.hidden);
  add_residual("decoder");
  for (int64_t i = 0; i < stages; ++i)
    add(fmt::format("decoder.up{}", i + 1), kDouble,
        i + 1 == stages ? image_channels : stage_channels(stages - 2 - i));
  return layers;
}

std::vector<ConvProblem> problems(const ConvLayer& layer) {
  return {forward_problem(layer.geometry, layer.input, layer.output),
          backward_data_problem(layer.geometry, layer.input, layer.output),
          backward_weight_problem(layer.geometry, layer.input, layer.output)};
}

// Plans the three ops of a layer, checks the plans and prints a line for each.
void check_plans(const ConvLayer& layer, const Card& card) {
  for (const ConvProblem& problem : problems(layer)) {
    INFO(card.name << ", " << layer.name << ": " << problem.text());
    const CudnnTarget target(card.properties);
    const ConvPlan plan = plan_convolution(problem, target);
    CHECK(is_exact(plan.config));
    CHECK(plan.workspace_bytes >= 0);
    CHECK(plan.workspace_bytes <= kConvWorkspaceBytes);
    CHECK(plan_convolution(problem, target).config.engine == plan.config.engine);
    std::string notes;
    for (const cudnnBackendNumericalNote_t note : plan.config.numerical_notes)
      notes +=
          note == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP ? " NaN kept" : fmt::format(" note {}", int(note));
    fmt::print("{} {:<24} {:<82} engine {:>3} {:>9} B{}\n", card.name, layer.name, problem.text(),
               plan.config.engine, plan.workspace_bytes, notes);
  }
}

void check_config(const std::string& path) {
  const Config config = load_config(path, {});
  const bool grey = config.data.kind == "idx";
  fmt::print("{}: batches of {}\n", config.name, config.train.batch_size);
  for (const Card& card : cards())
    for (const int64_t image_channels : {grey ? 1 : 3, 8})
      for (const ConvLayer& layer : convolutions(config, grey ? 28 : 32, image_channels))
        check_plans(layer, card);
}

ConvLayer layer_of(const char* name, const View<const float>& input, int64_t output_channels,
                   const ConvGeometry& geometry) {
  const View<const float> output(
      nullptr, {input[0], geometry.output_side(input[1]), geometry.output_side(input[2]), output_channels});
  return {name, input, output, geometry};
}

void check_every_config() {
  int configs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(VQLAB_SOURCE "/apps/configs"))
    if (entry.path().extension() == ".toml") {
      check_config(entry.path());
      ++configs;
    }
  CHECK(configs >= 1);
}

void check_odd_shapes() {
  const ConvKind transposed = ConvKind::transposed;
  for (const Card& card : cards())
    for (const ConvLayer& layer :
         {layer_of("sides not divided", {nullptr, {3, 28, 25, 3}}, 30, {.kernel = 3, .stride = 2}),
          layer_of("one channel", {nullptr, {17, 5, 7, 1}}, 1, {.kernel = 3, .stride = 2}),
          layer_of("large padding", {nullptr, {1, 8, 8, 5}}, 7, {.kernel = 4, .stride = 1, .padding = 3}),
          layer_of("large kernel", {nullptr, {2, 20, 20, 8}}, 16, {.kernel = 15, .stride = 3, .padding = 7}),
          layer_of("odd transposed", {nullptr, {9, 5, 7, 30}}, 3, {transposed, 3, 2, 0}),
          layer_of("one image", {nullptr, {1, 28, 28, 8}}, 16, {.kernel = 4, .stride = 2, .padding = 1}),
          // Too large for the workspace of the engines that copy their operands.
          layer_of("large images", {nullptr, {128, 256, 256, 64}}, 128, {.kernel = 3, .padding = 1}),
          layer_of("large batch", {nullptr, {16384, 14, 14, 64}}, 32, {transposed, 4, 2, 1})})
      check_plans(layer, card);
}

// The heuristics do offer tensor cores and unstable sums for such a layer, and most of their configs.
void check_refused_configs() {
  const Card card = std::move(cards().front());
  const CudnnTarget target(card.properties);
  const CudnnDescriptor large = cudnn_tensor(kLargeUid, {128, 32, 14, 14}, kConvAlignment),
                        small = cudnn_tensor(kSmallUid, {128, 32, 7, 7}, kConvAlignment),
                        filter = cudnn_tensor(kFilterUid, {32, 32, 4, 4}, kConvAlignment),
                        operation = cudnn_operation(ConvOperation::wgrad, cudnn_convolution(1, 2), large,
                                                    filter, small);
  int tensor_core = 0, unstable = 0, exact = 0;
  for (const CudnnConfig& config : cudnn_configs(target, cudnn_graph(target, operation), CUDNN_HEUR_MODE_A)) {
    bool refused = false;
    for (const cudnnBackendNumericalNote_t note : config.numerical_notes) {
      tensor_core += note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
      unstable += note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
      refused = refused || note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE ||
                note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    }
    CHECK(!(refused && is_exact(config)));
    exact += is_exact(config);
  }
  CHECK(tensor_core > 0);
  CHECK(unstable > 0);
  CHECK(exact > 0);
}

void check_refused_graph() {
  const Card card = std::move(cards().front());
  // A small side that does not follow from the large one.
  const ConvProblem problem{ConvOperation::fprop, 1, 28, 28, 8, 9, 9, 16, 4, 2, 1};
  std::string message;
  try {
    plan_convolution(problem, CudnnTarget(card.properties));
  } catch (const Error& error) {
    message = error.what();
    CHECK(error.kind() == ErrorKind::failed);
  }
  CHECK(message.find("BAD_PARAM") != std::string::npos);
}

void with_cudnn(void (*check)()) {
  const std::string problem = cudnn_problem();
  if (!problem.empty())
    WARN("SKIPPED: " << problem);
  else
    check();
}

}  // namespace

TEST_CASE("cudnn: every convolution of every config has an exact plan", "[cudnn-plans]") {
  with_cudnn(check_every_config);
}

TEST_CASE("cudnn: odd and large convolutions have exact plans", "[cudnn-plans]") {
  with_cudnn(check_odd_shapes);
}

TEST_CASE("cudnn: tensor cores and unstable sums are refused", "[cudnn-plans]") {
  with_cudnn(check_refused_configs);
}

TEST_CASE("cudnn: an impossible convolution is an error with cuDNN's own words", "[cudnn-plans]") {
  with_cudnn(check_refused_graph);
}

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
