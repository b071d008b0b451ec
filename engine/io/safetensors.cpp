#include "safetensors.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <set>
#include <tuple>

#include "json.hpp"
#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensor bytes are copied as they stand in the file");

constexpr int64_t kMaxHeaderBytes = int64_t(16) << 20;
constexpr int kHeaderDepth = 3;  // header, tensor, shape
constexpr size_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

struct TypeRow {
  TensorType type;
  std::string_view name;
  int64_t bytes;
};
constexpr TypeRow kTypes[] = {{TensorType::u8, "U8", 1},
                              {TensorType::i32, "I32", 4},
                              {TensorType::i64, "I64", 8},
                              {TensorType::f32, "F32", 4}};

const TypeRow& row_of(TensorType type) { return kTypes[size_t(type)]; }

// Bytes of a tensor, or nothing if a dimension is negative or the product overflows.
std::optional<int64_t> byte_count(std::span<const int64_t> shape, TensorType type) {
  int64_t bytes = row_of(type).bytes;
  for (const int64_t d : shape)
    if (d < 0 || __builtin_mul_overflow(bytes, d, &bytes)) return {};
  return bytes;
}

[[noreturn]] void fail(const std::string& what, const std::string& where) {
  throw Error(ErrorKind::checkpoint, what,
              "the file is damaged or of another kind; use another checkpoint or a copy", where);
}

std::vector<int64_t> integers(const Json& list) {
  std::vector<int64_t> values;
  for (const Json& item : list.items()) values.push_back(item.as_integer());
  return values;
}

// One member of the header. `data_size` is the number of bytes behind the header.
TensorInfo read_tensor(const std::string& name, const Json& json, int64_t data_size,
                       const std::string& where) {
  const auto fail_tensor = [&](const std::string& what) {
    fail(fmt::format("tensor '{}': {}", name, what), where);
  };
  if (name.empty()) fail_tensor("the name is empty");
  if (json.members().size() != 3) fail_tensor("expected dtype, shape and data_offsets, nothing else");
  const std::string& type_name = json.at("dtype").as_string();
  const auto* row =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](auto& r) { return r.name == type_name; });
  if (row == std::end(kTypes))
    fail_tensor(fmt::format("dtype '{}' is not one of U8, I32, I64, F32", type_name));

  TensorInfo tensor{name, row->type, integers(json.at("shape"))};
  const std::optional<int64_t> bytes = byte_count(tensor.shape, tensor.type);
  if (!bytes) fail_tensor(fmt::format("impossible shape {}", tensor.shape));
  const std::vector<int64_t> offsets = integers(json.at("data_offsets"));
  if (offsets.size() != 2) fail_tensor("data_offsets is not a pair");
  tensor.begin = offsets[0], tensor.end = offsets[1];
  if (tensor.begin < 0 || tensor.begin > tensor.end || tensor.end > data_size)
    fail_tensor(fmt::format("it stands at bytes {} to {} of {}", tensor.begin, tensor.end, data_size));
  if (tensor.end - tensor.begin != *bytes)
    fail_tensor(fmt::format("{} bytes for shape {} of {}, which takes {}", tensor.end - tensor.begin,
                            tensor.shape, type_name, *bytes));
  return tensor;
}

// The tensors must cover [0, data_size) in order, without holes or overlaps.
void check_cover(const std::vector<TensorInfo>& tensors, int64_t data_size, const std::string& where) {
  int64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != covered)
      fail(fmt::format("tensor '{}' begins at byte {} and not at {}, where the one before it ends",
                       tensor.name, tensor.begin, covered),
           where);
    covered = tensor.end;
  }
  if (covered != data_size) fail(fmt::format("{} bytes behind the last tensor", data_size - covered), where);
}

// The header as JSON; it starts behind the length at the start of the file.
Json read_header(std::string_view file, size_t& data_begin, const std::string& where) {
  if (file.size() < kLengthBytes)
    fail(fmt::format("the file has {} bytes, less than a header", file.size()), where);
  uint64_t length;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > uint64_t(kMaxHeaderBytes))
    fail(fmt::format("a header of {} bytes, more than {} MiB", length, kMaxHeaderBytes >> 20), where);
  if (length > file.size() - kLengthBytes)
    fail(fmt::format("a header of {} bytes in a file of {}", length, file.size()), where);
  data_begin = kLengthBytes + size_t(length);
  const std::string_view text = file.substr(kLengthBytes, size_t(length));
  if (!text.starts_with('{')) fail("the header does not start with '{'", where);
  return parse_json(text, where, kHeaderDepth);
}

}  // namespace

std::string_view tensor_type_name(TensorType type) { return row_of(type).name; }
int64_t tensor_type_bytes(TensorType type) { return row_of(type).bytes; }

std::string encode_safetensors(std::span<const TensorEntry> tensors, const TensorMetadata& metadata) {
  std::vector<const TensorEntry*> order;
  for (const TensorEntry& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    const int64_t a_bytes = row_of(a->type).bytes, b_bytes = row_of(b->type).bytes;
    return a_bytes != b_bytes ? a_bytes > b_bytes : a->name < b->name;
  });

  Json::Object header;
  std::set<std::string_view> names;
  if (!metadata.empty()) {
    Json::Object pairs;
    for (const auto& [key, value] : metadata) pairs.emplace_back(key, value);
    header.emplace_back(kMetadataKey, Json::object(std::move(pairs)));
  }
  int64_t offset = 0;
  for (const TensorEntry* tensor : order) {
    const std::optional<int64_t> bytes = byte_count(tensor->shape, tensor->type);
    VQ_REQUIRE(!tensor->name.empty() && tensor->name != kMetadataKey && names.insert(tensor->name).second,
               "safetensors: tensor name '{}' is empty, reserved or used twice", tensor->name);
    VQ_REQUIRE(bytes && (tensor->data || *bytes == 0), "safetensors: tensor '{}' of shape {} has no data",
               tensor->name, tensor->shape);
    const Json::Array offsets = {offset, offset + *bytes};
    header.emplace_back(tensor->name,
                        Json::object({{"dtype", row_of(tensor->type).name},
                                      {"shape", Json::Array(tensor->shape.begin(), tensor->shape.end())},
                                      {"data_offsets", offsets}}));
    offset += *bytes;
  }

  std::string text = Json::object(std::move(header)).dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the tensors stand aligned in a mapped file
  const uint64_t length = text.size();
  std::string file(kLengthBytes, '\0');
  std::memcpy(file.data(), &length, kLengthBytes);
  file.reserve(kLengthBytes + text.size() + size_t(offset));
  file += text;
  for (const TensorEntry* tensor : order)
    file.append(static_cast<const char*>(tensor->data), size_t(*byte_count(tensor->shape, tensor->type)));
  return file;
}

Safetensors::Safetensors(std::string bytes, std::string where)
    : file_(std::move(bytes)), where_(std::move(where)) {
  std::string reading = "the header";
  try {
    const Json header = read_header(file_, data_begin_, where_);
    const int64_t data_size = int64_t(file_.size() - data_begin_);
    for (const auto& [name, json] : header.members()) {
      reading = fmt::format("tensor '{}'", name);
      if (name == kMetadataKey) {
        for (const auto& [key, value] : json.members()) metadata_.emplace(key, value.as_string());
      } else {
        tensors_.push_back(read_tensor(name, json, data_size, where_));
      }
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    check_cover(tensors_, data_size, where_);
    for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
  } catch (const Error& error) {
    // What is malformed JSON to the parser is a damaged checkpoint to the user.
    if (error.kind() != ErrorKind::data) throw;
    fail(fmt::format("{}: {}", reading, error.what()), where_);
  }
}

const TensorInfo* Safetensors::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::string_view Safetensors::bytes(const TensorInfo& tensor) const {
  return std::string_view(file_).substr(data_begin_ + size_t(tensor.begin),
                                        size_t(tensor.end - tensor.begin));
}

const TensorInfo& Safetensors::require(std::string_view name, TensorType type) const {
  const TensorInfo* tensor = find(name);
  const char* hint = "the checkpoint is of another model or version";
  if (!tensor) throw Error(ErrorKind::checkpoint, fmt::format("tensor '{}' is missing", name), hint, where_);
  if (tensor->type != type)
    throw Error(ErrorKind::checkpoint,
                fmt::format("tensor '{}' is of type {} and not {}", name, row_of(tensor->type).name,
                            row_of(type).name),
                hint, where_);
  return *tensor;
}

void Safetensors::require_shape(const TensorInfo& tensor, std::span<const int64_t> shape) const {
  if (std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) return;
  throw Error(ErrorKind::checkpoint,
              fmt::format("tensor '{}' has shape {} and not {}", tensor.name, tensor.shape, shape),
              "the checkpoint is of a model with another configuration", where_);
}

void Safetensors::copy_bytes(const TensorInfo& tensor, void* output) const {
  const std::string_view source = bytes(tensor);
  if (!source.empty()) std::memcpy(output, source.data(), source.size());
}

}  // namespace vqlab
