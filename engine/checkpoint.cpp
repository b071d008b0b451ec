#include "checkpoint.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <set>

#include "io/file.hpp"
#include "io/json.hpp"

namespace vqlab {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFormat = 1;
constexpr int64_t kMaxFileBytes = int64_t(1) << 40;
constexpr std::array kFiles = {"model.safetensors", "optim.safetensors", "state.json"};
// Where evaluations use averages, the model's file has those, and the optimiser's what is in training.
constexpr const char* kInTraining = ".in_training";
using Contents = std::array<std::string, kFiles.size()>;

std::string step_name(int64_t step) { return fmt::format("step-{:08}", step); }

// Tensors in host memory, owned, in the file's order.
class HostTensors {
 public:
  void add(const std::string& name, std::vector<int64_t> shape, std::vector<float> values) {
    floats_.push_back(std::move(values));
    push(name, TensorType::f32, std::move(shape), floats_.back().data());
  }
  void add(const std::string& name, const View<const float>& device, const Runtime& runtime) {
    add(name, shape_of(device), to_host(device, runtime));
  }
  void add(const std::string& name, const View<const int32_t>& device, const Runtime& runtime) {
    integers_.push_back(to_host(device, runtime));
    push(name, TensorType::i32, shape_of(device), integers_.back().data());
  }
  // A parameter-shaped part of a slab, with convolution weights in torch's order.
  void add(const std::string& name, const Parameter& parameter, const View<const float>& device,
           const Runtime& runtime) {
    add(name, file_shape(parameter), to_file_order(parameter, to_host(device, runtime).data()));
  }
  std::string encode() const { return encode_safetensors(entries_, {{"format", "pt"}}); }

 private:
  template <class T>
  static std::vector<int64_t> shape_of(const View<T>& view) {
    return {view.dim.begin(), view.dim.begin() + view.rank};
  }
  void push(const std::string& name, TensorType type, std::vector<int64_t> shape, const void* data) {
    TensorEntry entry;
    entry.name = name;
    entry.type = type;
    entry.shape = std::move(shape);
    entry.data = data;
    entries_.push_back(std::move(entry));
  }

  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<int32_t>> integers_;
  std::vector<TensorEntry> entries_;
};

void add_state(HostTensors& tensors, const std::vector<StateTensor>& state, const Runtime& runtime) {
  for (const StateTensor& t : state) {
    if (t.floats) tensors.add(t.name, t.floats, runtime);
    if (t.integers) tensors.add(t.name, t.integers, runtime);
  }
}

std::string encode_model(Model& model, const Runtime& runtime) {
  HostTensors tensors;
  const ParameterStore& store = model.parameters();
  for (size_t id = 0; id < store.parameters().size(); ++id)
    tensors.add(store.parameters()[id].name, store.parameters()[id],
                store.averages() ? store.average(id) : store.weight(id), runtime);
  for (size_t id = 0; id < store.buffers().size(); ++id)
    tensors.add(store.buffers()[id].name, store.averages() ? store.buffer_average(id) : store.buffer(id),
                runtime);
  add_state(tensors, model.quantizer().model_state(), runtime);
  return tensors.encode();
}

std::string encode_optimiser(Model& model, const Runtime& runtime) {
  HostTensors tensors;
  const ParameterStore& store = model.parameters();
  for (size_t id = 0; id < store.parameters().size(); ++id) {
    const Parameter& p = store.parameters()[id];
    tensors.add(p.name + ".exp_avg", p, store.moment1(id), runtime);
    tensors.add(p.name + ".exp_avg_sq", p, store.moment2(id), runtime);
    if (store.averages()) tensors.add(p.name + kInTraining, p, store.weight(id), runtime);
  }
  for (size_t id = 0; store.averages() && id < store.buffers().size(); ++id)
    tensors.add(store.buffers()[id].name + kInTraining, store.buffer(id), runtime);
  add_state(tensors, model.quantizer().training_state(), runtime);
  return tensors.encode();
}

Json encode_state(const Model& model, const TrainingProgress& p, const DataFacts& f) {
  Json json = Json::object();
  json["format"] = kFormat;
  json["step"] = p.step;
  json["skipped"] = p.skipped;
  json["skipped_in_a_row"] = p.skipped_in_a_row;
  json["evaluations"] = p.evaluations;
  json["best_mse"] = p.best_mse ? Json(*p.best_mse) : Json();
  if (p.best_accuracy) json["best_accuracy"] = *p.best_accuracy;
  json["best_step"] = p.best_step;
  json["without_improvement"] = p.without_improvement;
  json["metrics_bytes"] = p.metrics_bytes;
  json["codebook_initialised"] = model.quantizer().initialised();
  if (!model.convolution_book().device.empty()) json["plans"] = model.convolution_book().to_json();
  if (!model.kernels().device.empty()) json["kernels"] = model.kernels().to_json();
  Json& data = json["data"];
  data["height"] = f.shape.height;
  data["width"] = f.shape.width;
  data["channels"] = f.shape.channels;
  data["training_images"] = f.training_images;
  data["variance"] = f.variance;
  data["pixels_xxh3"] = f.pixels_xxh3;
  return json;
}

// The newest step directories first.
std::vector<fs::path> step_directories(const fs::path& root) {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(root, ignored))
    if (entry.path().filename().string().starts_with("step-")) found.push_back(entry.path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

bool holds_tensors(std::string_view file) { return file.ends_with(".safetensors"); }

// What DONE keeps of a file: its size, its hash, and the checksum of each tensor, so that damage can be
// located.
Json describe_file(const std::string& name, const std::string& bytes) {
  Json entry = Json::object();
  entry["bytes"] = int64_t(bytes.size());
  entry["xxh3"] = xxh3_hex(bytes);
  if (!holds_tensors(name)) return entry;
  const Safetensors file(bytes, name);
  Json& checksums = entry["crc32c"] = Json::object();
  for (const TensorInfo& tensor : file.tensors())
    checksums[tensor.name] = int64_t(crc32c(file.bytes(tensor)));
  return entry;
}

// Which part of a file whose hash differs is damaged.
std::string damaged_part(const std::string& name, const std::string& bytes, const Json& entry) {
  if (!holds_tensors(name)) return "its hash differs";
  const Safetensors file(bytes, name);  // throws, with the reason, if the damage is in the header
  for (const TensorInfo& tensor : file.tensors()) {
    const Json* checksum = entry.at("crc32c").find(tensor.name);
    if (checksum == nullptr || checksum->as_integer() != int64_t(crc32c(file.bytes(tensor))))
      return "the checksum of tensor " + tensor.name + " differs";
  }
  return "its header differs";
}

// Steps 1 to 4 of the protocol: files, DONE, directory, rename. A directory of the same name is left over
// from a run that was killed or damaged, and is replaced.
void write_checkpoint(const fs::path& root, const std::string& name, const Contents& contents) {
  const fs::path temporary = root / fmt::format(".tmp-{}-{}", name, getpid());
  std::error_code error;
  fs::remove_all(temporary, error);
  if (!fs::create_directories(temporary, error))
    throw Error(error == std::errc::no_space_on_device ? ErrorKind::resources : ErrorKind::usage,
                "cannot create the checkpoint directory: " + error.message(),
                "free some disk space or choose a writable --run directory", temporary.string());
  try {
    Json done = Json::object();
    for (size_t i = 0; i < kFiles.size(); ++i) {
      write_file_durably((temporary / kFiles[i]).string(), contents[i]);
      done[kFiles[i]] = describe_file(kFiles[i], contents[i]);
    }
    write_file_durably((temporary / "DONE").string(), done.dump(2) + "\n");
    fsync_directory(temporary.string());
    fs::remove_all(root / name, error);
    rename_durably(temporary.string(), (root / name).string());
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

void remove_old(const fs::path& root, int64_t keep) {
  std::set<std::string> kept = {step_name(0)};
  std::error_code ignored;
  for (const char* link : {"last", "best"})
    if (const fs::path target = fs::read_symlink(root / link, ignored); !ignored)
      kept.insert(target.string());
  int64_t newest = 0;
  for (const fs::path& directory : step_directories(root))
    if (newest++ >= keep && !kept.contains(directory.filename().string())) fs::remove_all(directory, ignored);
  for (const auto& entry : fs::directory_iterator(root, ignored))
    if (entry.path().filename().string().find(".tmp-") != std::string::npos)
      fs::remove_all(entry.path(), ignored);
}

[[noreturn]] void fail(const std::string& what, const std::string& where, const std::string& hint = "") {
  throw Error(ErrorKind::checkpoint, what,
              hint.empty() ? "choose another checkpoint with --checkpoint, or train again" : hint, where);
}

}  // namespace

std::string save_checkpoint(const std::string& run, const Runtime& runtime, Model& model,
                            const TrainingProgress& progress, const DataFacts& facts, bool is_best,
                            int64_t keep) {
  const fs::path root = fs::path(run) / "ckpt";
  const Contents contents = {encode_model(model, runtime), encode_optimiser(model, runtime),
                             encode_state(model, progress, facts).dump(2) + "\n"};
  write_checkpoint(root, step_name(progress.step), contents);
  replace_symlink(step_name(progress.step), (root / "last").string());
  if (is_best) replace_symlink(step_name(progress.step), (root / "best").string());
  remove_old(root, keep);
  return sha256_hex(contents[0]);
}

Checkpoint::Checkpoint(const std::string& run, const std::string& which) {
  const fs::path root = fs::path(run) / "ckpt";
  if (which != "last") {
    const bool by_name = which.find('/') == std::string::npos;  // best, step-00000200
    read(by_name ? (root / which).string() : which);
    return;
  }
  std::vector<fs::path> candidates = step_directories(root);
  std::error_code error_code;
  if (const fs::path last = fs::canonical(root / "last", error_code); !error_code)
    candidates.insert(candidates.begin(), last);
  if (candidates.empty())
    fail("there is no checkpoint", root.string(),
         "pass the directory of a run that `vqlab train` has written");
  for (const fs::path& candidate : candidates) {
    try {
      read(candidate.string());
      return;
    } catch (const Error& error) {
      if (candidate == candidates.back()) throw;
      if (warnings_.empty() || warnings_.back().find(candidate.string()) == std::string::npos)
        warnings_.push_back(
            fmt::format("checkpoint {} is damaged and skipped: {}", candidate.string(), error.what()));
    }
  }
}

void Checkpoint::read(const std::string& directory) {
  try {
    read_files(directory);
  } catch (const Error& error) {  // malformed JSON is a damaged checkpoint, not damaged data
    if (error.kind() != ErrorKind::data) throw;
    fail(error.what(), error.where());
  } catch (const fs::filesystem_error& error) {
    fail("cannot read the checkpoint: " + error.code().message(), directory);
  }
}

void Checkpoint::read_files(const std::string& directory) {
  const fs::path path(directory);
  if (!fs::is_directory(path)) fail("there is no such checkpoint", directory);
  const std::string done_path = (path / "DONE").string();
  const Json done = parse_json(read_file(done_path, 1 << 20, ErrorKind::checkpoint), done_path);
  Contents contents;
  for (size_t i = 0; i < kFiles.size(); ++i) {
    const std::string file = (path / kFiles[i]).string();
    const Json* entry = done.find(kFiles[i]);
    if (entry == nullptr) fail(fmt::format("DONE does not list {}", kFiles[i]), done_path);
    contents[i] = read_file(file, kMaxFileBytes, ErrorKind::checkpoint);
    if (int64_t(contents[i].size()) != entry->at("bytes").as_integer())
      fail(fmt::format("the file has {} bytes instead of {}", contents[i].size(),
                       entry->at("bytes").as_integer()),
           file);
    if (xxh3_hex(contents[i]) != entry->at("xxh3").as_string())
      fail("the file is damaged: " + damaged_part(kFiles[i], contents[i], *entry), file);
  }
  const std::string state_path = (path / kFiles[2]).string();
  const Json state = parse_json(contents[2], state_path);
  if (state.at("format").as_integer() != kFormat)
    fail(fmt::format("checkpoint format {} is not known", state.at("format").as_integer()), state_path,
         "use the vqlab version that wrote it");
  const auto optional_number = [&](const char* key) {
    const Json* value = state.find(key);
    return value == nullptr || value->is_null() ? std::nullopt : std::optional<double>(value->as_number());
  };
  progress_ = {.step = state.at("step").as_integer(),
               .skipped = state.at("skipped").as_integer(),
               .skipped_in_a_row = state.at("skipped_in_a_row").as_integer(),
               .evaluations = state.at("evaluations").as_integer(),
               .best_mse = optional_number("best_mse"),
               .best_accuracy = optional_number("best_accuracy"),
               .best_step = state.at("best_step").as_integer(),
               .without_improvement = state.at("without_improvement").as_integer(),
               .metrics_bytes = state.at("metrics_bytes").as_integer()};
  const Json& data = state.at("data");
  facts_ = {.shape = {data.at("height").as_integer(), data.at("width").as_integer(),
                      data.at("channels").as_integer()},
            .training_images = data.at("training_images").as_integer(),
            .variance = data.at("variance").as_number(),
            .pixels_xxh3 = data.at("pixels_xxh3").as_string()};
  codebook_initialised_ = state.at("codebook_initialised").as_bool();
  const Json* plans = state.find("plans");
  convolution_book_ = plans == nullptr ? ConvBook{} : ConvBook::from_json(*plans);
  const Json* kernels = state.find("kernels");
  kernels_ = kernels == nullptr ? RunKernels{} : RunKernels::from_json(*kernels);
  directory_ = directory;
  weights_sha256_ = sha256_hex(contents[0]);
  model_.emplace(std::move(contents[0]), (path / kFiles[0]).string());
  optimiser_.emplace(std::move(contents[1]), (path / kFiles[1]).string());
}

namespace {

void upload_now(const View<float>& device, const std::vector<float>& values, const Runtime& runtime) {
  runtime.upload(device.data, values.data(), device.bytes(), runtime.compute());
  runtime.synchronize(runtime.compute());
}

}  // namespace

int64_t Checkpoint::start(Model& model, const Runtime& runtime) const {
  const ParameterStore& store = model.parameters();
  int64_t fitting = 0;
  for (size_t id = 0; id < store.parameters().size(); ++id) {
    const Parameter& p = store.parameters()[id];
    const TensorInfo* info = model_->find(p.name);
    if (info == nullptr || info->shape != file_shape(p)) {
      if (!p.name.starts_with("encoder.")) continue;
      throw Error(ErrorKind::usage, fmt::format("{} of the run does not fit the configured model", p.name),
                  "start from a run with the same [model]", directory_);
    }
    const std::vector<float> values = to_memory_order(p, model_->floats(p.name).data());
    upload_now(store.weight(id), values, runtime);
    if (store.averages()) upload_now(store.average(id), values, runtime);
    ++fitting;
  }
  for (size_t id = 0; id < store.buffers().size(); ++id) {
    const Buffer& buffer = store.buffers()[id];
    const TensorInfo* info = model_->find(buffer.name);
    if (info == nullptr || info->shape != std::vector<int64_t>{buffer.size}) continue;
    const std::vector<float> values = model_->floats(buffer.name);
    upload_now(store.buffer(id), values, runtime);
    if (store.averages()) upload_now(store.buffer_average(id), values, runtime);
    ++fitting;
  }
  return fitting;
}

void Checkpoint::restore(Model& model, const Runtime& runtime) const {
  const auto load_parameter = [&](const Safetensors& file, const std::string& name, const Parameter& p,
                                  const View<float>& device) {
    const TensorInfo* info = file.find(name);
    if (info != nullptr && info->shape != file_shape(p))
      fail(fmt::format("tensor {} has another shape than the configured model", name), directory_,
           "use the run's own config.toml");
    upload_now(device, to_memory_order(p, file.floats(name).data()), runtime);
  };
  const auto load_state = [&](const Safetensors& file, const std::vector<StateTensor>& state) {
    const auto load = [&](const std::string& name, const auto& device) {
      using T = std::remove_reference_t<decltype(*device.data)>;
      if (!device) return;
      std::vector<T> values(static_cast<size_t>(device.size()));
      View<T> host = device;
      host.data = values.data();
      file.copy_to(name, host);
      runtime.upload(device.data, values.data(), device.bytes(), runtime.compute());
      runtime.synchronize(runtime.compute());
    };
    for (const StateTensor& t : state) {
      load(t.name, t.floats);
      load(t.name, t.integers);
    }
  };
  ParameterStore& store = model.parameters();
  const bool training = bool(store.moments1());
  for (size_t id = 0; id < store.parameters().size(); ++id) {
    const Parameter& p = store.parameters()[id];
    load_parameter(*model_, p.name, p, store.averages() ? store.average(id) : store.weight(id));
    if (!training) continue;
    if (store.averages()) load_parameter(*optimiser_, p.name + kInTraining, p, store.weight(id));
    load_parameter(*optimiser_, p.name + ".exp_avg", p, store.moment1(id));
    load_parameter(*optimiser_, p.name + ".exp_avg_sq", p, store.moment2(id));
  }
  for (size_t id = 0; id < store.buffers().size(); ++id) {
    const std::string& name = store.buffers()[id].name;
    load_state(*model_, {{name, store.averages() ? store.buffer_average(id) : store.buffer(id), {}}});
    if (store.averages()) load_state(*optimiser_, {{name + kInTraining, store.buffer(id), {}}});
  }
  Quantizer& quantizer = model.quantizer();
  quantizer.set_initialised(codebook_initialised_);
  load_state(*model_, quantizer.model_state());
  if (training) load_state(*optimiser_, quantizer.training_state());
  quantizer.restored(runtime);
}

}  // namespace vqlab
