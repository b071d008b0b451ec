// File formats in memory: safetensors, npy, PNG.
#include <png.h>
#include <rapidcheck.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>

#include "engine/io/file.hpp"
#include "engine/io/npy.hpp"
#include "engine/io/png.hpp"
#include "engine/io/safetensors.hpp"
#include "expect_error.hpp"

using namespace vqlab;
using namespace vqlab::testing;

namespace {

std::string little_endian(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += char(value >> (8 * i) & 0xFF);
  return text;
}

std::string tensor_file(const std::string& header, const std::string& data = "") {
  return little_endian(header.size(), 8) + header + data;
}

// A header with one tensor "x", its fields as given.
std::string one_tensor(const std::string& fields, size_t data_bytes) {
  return tensor_file("{\"x\":{" + fields + "}}", std::string(data_bytes, 'd'));
}

std::string small_tensor_file() {
  static const float weights[] = {1.0f, -2.5f};
  static const uint8_t marks[] = {7, 8, 9};
  static const int64_t step[] = {1000};
  const TensorEntry entries[] = {{"weights", View<const float>(weights, {1, 2})},
                                 {"marks", View<const uint8_t>(marks, {3})},
                                 {"step", View<const int64_t>(step, {1})}};
  return encode_safetensors(entries, {{"format", "pt"}, {"about", "a \"test\""}});
}

// What a checked file promises: its tensors lie within it, in order, and can be read.
void require_consistent(const Safetensors& file) {
  int64_t end = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    REQUIRE(tensor.begin == end);
    end = tensor.end;
    int64_t elements = 1;
    for (const int64_t d : tensor.shape) elements *= d;
    REQUIRE(elements == tensor.size());
    REQUIRE(int64_t(file.bytes(tensor).size()) == elements * tensor_type_bytes(tensor.type));
    REQUIRE(file.find(tensor.name) == &tensor);
    if (tensor.type == TensorType::f32) REQUIRE(int64_t(file.floats(tensor.name).size()) == elements);
  }
}

// Flips each of the first `bytes` bytes' bits: `read` must throw Error or give something consistent. Returns
// how many flips were refused.
template <class Read>
int count_refused_flips(const std::string& file, size_t bytes, const Read& read) {
  int refused = 0;
  for (size_t bit = 0; bit < 8 * bytes; ++bit) {
    INFO("bit " << bit);
    std::string damaged = file;
    damaged[bit / 8] = char(uint8_t(damaged[bit / 8]) ^ 1u << bit % 8);
    try {
      read(damaged);
    } catch (const Error&) {
      ++refused;
    }
  }
  return refused;
}

std::string npy_file(const std::string& header, const std::string& data, int major = 1) {
  return "\x93NUMPY" + std::string(1, char(major)) + std::string(1, '\0') +
         little_endian(header.size(), major == 1 ? 2 : 4) + header + data;
}

std::string npy_dict(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

// The picture as libpng's own reader sees it.
std::vector<uint8_t> decode(const std::string& png, int64_t height, int64_t width, int64_t channels) {
  png_image image = {};
  image.version = PNG_IMAGE_VERSION;
  REQUIRE(png_image_begin_read_from_memory(&image, png.data(), png.size()));
  REQUIRE(int64_t(image.height) == height);
  REQUIRE(int64_t(image.width) == width);
  REQUIRE(image.format == (channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB));
  std::vector<uint8_t> pixels(size_t(height * width * channels));
  REQUIRE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr));
  return pixels;
}

}  // namespace

TEST_CASE("safetensors: golden bytes", "[unit]") {
  const std::string header = R"({"__metadata__": {"about": "a \"test\"", "format": "pt"}, )"
                             R"("step": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, )"
                             R"("weights": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]}, )"
                             R"("marks": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]}})";
  const std::string padding((8 - header.size() % 8) % 8, ' ');
  const std::string data = little_endian(1000, 8) + std::string("\0\0\x80\x3F\0\0\x20\xC0", 8) + "\7\10\11";
  CHECK(small_tensor_file() == tensor_file(header + padding, data));
}

TEST_CASE("safetensors: the order of the input does not matter", "[unit]") {
  const float numbers[] = {1, 2, 3};
  const int32_t counts[] = {4};
  std::vector<TensorEntry> entries = {{"b", View<const float>(numbers, {3})},
                                      {"a", View<const float>(numbers, {1})},
                                      {"c", View<const int32_t>(counts, {1})}};
  const std::string file = encode_safetensors(entries);
  std::reverse(entries.begin(), entries.end());
  CHECK(encode_safetensors(entries) == file);
}

TEST_CASE("safetensors: tensors survive writing and reading", "[unit]") {
  REQUIRE(rc::check("round trip", [](const std::vector<float>& numbers, const std::vector<uint8_t>& bytes,
                                     const std::string& text, uint64_t bits) {
    const int64_t count = int64_t(numbers.size()), wide = int64_t(bits);
    const int32_t narrow = int32_t(bits);
    const TensorEntry entries[] = {{"numbers", View<const float>(numbers.data(), {1, count})},
                                   {"by\"tes", View<const uint8_t>(bytes.data(), {int64_t(bytes.size())})},
                                   {"narrow", View<const int32_t>(&narrow, {1, 1})},
                                   {"wide", View<const int64_t>(&wide, {1})}};
    const TensorMetadata metadata = {{"text", text}};
    const bool is_ascii = std::all_of(text.begin(), text.end(), [](char c) { return c >= 0; });
    const Safetensors file(encode_safetensors(entries, metadata), "memory");
    RC_ASSERT(file.tensors().size() == 4u);
    RC_ASSERT(file.floats("numbers") == numbers);
    RC_ASSERT(file.find("numbers")->shape == (std::vector<int64_t>{1, count}));
    RC_ASSERT(file.values<uint8_t>("by\"tes") == bytes);
    RC_ASSERT(file.values<int32_t>("narrow")[0] == narrow);
    RC_ASSERT(file.values<int64_t>("wide")[0] == wide);
    if (is_ascii) RC_ASSERT(file.metadata() == metadata);
  }));
}

TEST_CASE("safetensors: a tensor is copied to where it belongs", "[unit]") {
  const Safetensors file(small_tensor_file(), "memory");
  Guarded<float> output(2, 1);
  file.copy_to("weights", output.view({1, 2}));
  CHECK(output.data()[0] == 1.0f);
  CHECK(output.data()[1] == -2.5f);
  output.check_guards();
  const char* where = "memory";
  require_error(ErrorKind::checkpoint, "tensor 'bias' is missing", where, [&] { file.floats("bias"); });
  require_error(ErrorKind::checkpoint, "tensor 'step' is of type I64 and not F32", where,
                [&] { file.floats("step"); });
  require_error(ErrorKind::checkpoint, "tensor 'weights' has shape [1, 2] and not [2]", where,
                [&] { file.copy_to("weights", output.view({2})); });
}

TEST_CASE("safetensors: files of other writers", "[unit]") {
  // Compact, unsorted, unpadded, with rank 0, an empty tensor and no metadata.
  const Safetensors file(
      tensor_file(
          R"({"b":{"dtype":"F32","shape":[],"data_offsets":[1,5]},"a":{"data_offsets":[0,1],"shape":[1,1,1,1,1],)"
          R"("dtype":"U8"},"none":{"dtype":"F32","shape":[0,3],"data_offsets":[1,1]}}   )",
          std::string("\5\0\0\x80\x3F", 5)),
      "memory");
  require_consistent(file);
  CHECK(file.floats("b") == std::vector<float>{1.0f});
  CHECK(file.values<uint8_t>("a") == std::vector<uint8_t>{5});
  CHECK(file.floats("none").empty());
  CHECK(Safetensors(tensor_file("{}"), "memory").tensors().empty());
}

TEST_CASE("safetensors: malformed files are refused", "[bad-input]") {
  const std::string fields = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const auto pair = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + a +
           R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + b + "}}";
  };
  Safetensors(one_tensor(fields, 4), "file");
  Safetensors(tensor_file(pair("[0,2]", "[2,4]"), "data"), "file");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "less than a header"},
      {"1234567", "less than a header"},
      {little_endian(UINT64_MAX, 8) + "{}", "more than 16 MiB"},
      {little_endian(uint64_t(1) << 63, 8) + "{}", "more than 16 MiB"},
      {little_endian((16 << 20) + 1, 8) + "{}", "more than 16 MiB"},
      {little_endian(3, 8) + "{}", "a header of 3 bytes in a file of 10"},
      {tensor_file(""), "does not start with '{'"},
      {tensor_file(" {}"), "does not start with '{'"},
      {tensor_file("[]"), "does not start with '{'"},
      {tensor_file("{\"x\":}"), "the header: invalid JSON"},
      {tensor_file("{\"\xFF\":{}}"), "invalid JSON"},
      {tensor_file("{}{}"), "invalid JSON"},
      {tensor_file("{\"x\":{\"shape\":[[1]]}}"), "nested deeper"},
      {tensor_file("{\"x\":{" + fields + "},\"x\":{" + fields + "}}", "data"), "key 'x' occurs twice"},
      {tensor_file("{\"x\":1}"), "tensor 'x': expected an object"},
      {tensor_file("{\"\":{" + fields + "}}", "data"), "the name is empty"},
      {tensor_file("{\"__metadata__\":{\"a\":1}}"), "expected a string"},
      {tensor_file("{\"__metadata__\":[]}"), "expected an object"},
      {tensor_file("{}", "x"), "1 bytes behind the last tensor"},
      {one_tensor(fields, 3), "tensor 'x': it stands at bytes 0 to 4 of 3"},
      {one_tensor(fields, 5), "1 bytes behind the last tensor"},
      {one_tensor(fields + R"(,"more":1)", 4), "nothing else"},
      {one_tensor(R"("dtype":"F32","shape":[1])", 4), "tensor 'x': expected dtype"},
      {one_tensor(R"("dtype":"F32","shape":[1],"offsets":[0,4])", 4),
       "tensor 'x': key 'data_offsets' is missing"},
      {one_tensor(R"("dtype":"F16","shape":[2],"data_offsets":[0,4])", 4),
       "tensor 'x': dtype 'F16' is not one of"},
      {one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])", 4),
       "tensor 'x': 4 bytes for shape [2]"},
      {one_tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])", 4), "impossible shape [-1]"},
      {one_tensor(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])", 4),
       "tensor 'x': expected an integer"},
      {one_tensor(R"("dtype":"F32","shape":1,"data_offsets":[0,4])", 4), "tensor 'x': expected an array"},
      {one_tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])", 4),
       "impossible shape"},
      {one_tensor(R"("dtype":"F32","shape":[2147483648,4294967296],"data_offsets":[0,0])", 0),
       "impossible shape"},
      {one_tensor(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])", 0),
       "impossible shape"},
      {one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0])", 4), "not a pair"},
      {one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])", 4), "not a pair"},
      {one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])", 4), "it stands at bytes 4 to 0"},
      {one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])", 4), "it stands at bytes -4 to 0"},
      {tensor_file(pair("[0,2]", "[1,3]"), "dat"), "tensor 'b' begins at byte 1 and not at 2"},
      {tensor_file(pair("[0,2]", "[3,5]"), "datum"), "tensor 'b' begins at byte 3 and not at 2"},
      {tensor_file(pair("[0,2]", "[0,2]"), "da"), "tensor 'b' begins at byte 0 and not at 2"},
      {tensor_file(pair("[1,3]", "[3,5]"), "datum"), "tensor 'a' begins at byte 1 and not at 0"},
  };
  for (const auto& [file, what] : cases) {
    INFO("file: " << file);
    require_error(ErrorKind::checkpoint, what, "runs/x.safetensors",
                  [&] { Safetensors(file, "runs/x.safetensors"); });
  }
}

TEST_CASE("safetensors: a file cut at any byte or longer by one is refused", "[bad-input]") {
  const std::string file = small_tensor_file();
  require_consistent(Safetensors(file, "file"));
  for (size_t length = 0; length < file.size(); ++length) {
    INFO("length " << length);
    REQUIRE_THROWS_AS(Safetensors(file.substr(0, length), "file"), Error);
  }
  REQUIRE_THROWS_AS(Safetensors(file + '\0', "file"), Error);
}

TEST_CASE("safetensors: a flipped header bit is refused or harmless", "[bad-input]") {
  const std::string file = small_tensor_file();
  const size_t header = file.size() - 19;
  const int refused = count_refused_flips(
      file, header, [](std::string damaged) { require_consistent(Safetensors(damaged, "file")); });
  // Only flips inside the names, the metadata and the padding can go unnoticed, and types of equal size.
  CHECK(refused > int(8 * header / 2));
  for (int bit = 0; bit < 64; ++bit) {
    std::string damaged = file;
    damaged[size_t(bit / 8)] = char(uint8_t(damaged[size_t(bit / 8)]) ^ 1u << bit % 8);
    INFO("bit " << bit << " of the length");
    REQUIRE_THROWS_AS(Safetensors(damaged, "file"), Error);
  }
}

TEST_CASE("safetensors: the writer refuses names that cannot be read back", "[bad-input]") {
  const float number = 1;
  const View<const float> view(&number, {1});
  for (const std::string name : {"", "__metadata__"}) {
    const TensorEntry entries[] = {{name, view}};
    REQUIRE_THROWS_AS(encode_safetensors(entries), Error);
  }
  const TensorEntry twice[] = {{"x", view}, {"x", view}};
  REQUIRE_THROWS_AS(encode_safetensors(twice), Error);
  const TensorEntry absent[] = {{"x", View<const float>(nullptr, {1})}};
  REQUIRE_THROWS_AS(encode_safetensors(absent), Error);
}

TEST_CASE("npy: golden bytes", "[unit]") {
  const uint16_t codes[] = {1, 2, 3, 4, 5, 0x1234};
  const std::string file = encode_npy(View<const uint16_t>(codes, {2, 3}));
  std::string header = "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }";
  header.resize(128 - 10 - 1, ' ');
  CHECK(file == npy_file(header + "\n", std::string("\1\0\2\0\3\0\4\0\5\0\x34\x12", 12)));
  const uint8_t byte = 9;
  CHECK(encode_npy(View<const uint8_t>(&byte, {1}))
            .find("{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }") == 10);
}

TEST_CASE("npy: arrays survive writing and reading", "[unit]") {
  REQUIRE(
      rc::check("round trip", [](const std::vector<float>& floats, const std::vector<uint8_t>& small,
                                 const std::vector<uint16_t>& middle, const std::vector<uint32_t>& large) {
        const auto reread = [](const auto& values, std::vector<int64_t> shape) {
          using T = typename std::decay_t<decltype(values)>::value_type;
          const std::string file = encode_npy(npy_type_of<T>(), shape, values.data());
          RC_ASSERT((file.size() - values.size() * sizeof(T)) % 64 == 0u);
          const NpyArray array(file, "memory");
          RC_ASSERT(array.shape() == shape);
          RC_ASSERT(array.template values<T>() == values);
        };
        reread(floats, {int64_t(floats.size())});
        reread(small, {int64_t(small.size()), 1});
        reread(middle, {1, 1, int64_t(middle.size())});
        reread(large, {1, int64_t(large.size()), 1, 1});
      }));
}

TEST_CASE("npy: codes of any unsigned type", "[unit]") {
  const uint8_t small[] = {0, 255};
  const uint16_t middle[] = {0, 65535};
  const uint32_t large[] = {0, 2147483647};
  CHECK(NpyArray(encode_npy(View<const uint8_t>(small, {2})), "f").codes() == std::vector<int32_t>{0, 255});
  CHECK(NpyArray(encode_npy(View<const uint16_t>(middle, {2})), "f").codes() ==
        std::vector<int32_t>{0, 65535});
  CHECK(NpyArray(encode_npy(View<const uint32_t>(large, {2})), "f").codes() ==
        std::vector<int32_t>{0, INT32_MAX});
  const uint32_t beyond[] = {0, 2147483648u};
  const float number[] = {1};
  require_error(ErrorKind::data, "code 2147483648 at 1", "f",
                [&] { NpyArray(encode_npy(View<const uint32_t>(beyond, {2})), "f").codes(); });
  require_error(ErrorKind::data, "floats where codes", "f",
                [&] { NpyArray(encode_npy(View<const float>(number, {1})), "f").codes(); });
  require_error(ErrorKind::data, "<f4 and not <u2", "f",
                [&] { NpyArray(encode_npy(View<const float>(number, {1})), "f").values<uint16_t>(); });
}

TEST_CASE("npy: files of other writers", "[unit]") {
  const auto shape_of = [](const std::string& header, int major, size_t bytes) {
    return NpyArray(npy_file(header, std::string(bytes, '\1'), major), "file").shape();
  };
  CHECK(shape_of(npy_dict("<u2", "False", "(2, 3)"), 1, 12) == std::vector<int64_t>{2, 3});
  CHECK(shape_of(npy_dict("<u2", "False", "(2,3,)"), 2, 12) == std::vector<int64_t>{2, 3});
  CHECK(shape_of(npy_dict("<f4", "False", "()"), 3, 4).empty());
  CHECK(shape_of("{\"shape\":(1,),\"descr\":\"|u1\",\"fortran_order\":False}", 1, 1) ==
        std::vector<int64_t>{1});
  CHECK(shape_of(npy_dict("|u1", "False", "(0, 5)"), 1, 0) == std::vector<int64_t>{0, 5});
}

TEST_CASE("npy: malformed files are refused", "[bad-input]") {
  const auto file_of = [](const std::string& descr, const std::string& order, const std::string& shape) {
    return npy_file(npy_dict(descr, order, shape), "data");
  };
  const std::string twice = "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not a .npy file"},
      {"\x93NUMP", "not a .npy file"},
      {"PK\3\4", "not a .npy file"},
      {npy_file(npy_dict("<f4", "False", "(1,)"), "data", 4), "version 4"},
      {std::string("\x93NUMPY\1\0\5", 9), "in its header"},
      {std::string("\x93NUMPY\1\0\377\0{}", 12), "in its header"},
      {std::string("\x93NUMPY\2\0\377\377\377\377{}", 14), "more than 65536"},
      {npy_file("", "data"), "expected '{'"},
      {npy_file("{'descr': '<f4', 'fortran_order': False, }", "data"), "is missing"},
      {npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", "data"),
       "'more' is unknown"},
      {npy_file(twice, "data"), "occurs twice"},
      {npy_file("{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}", "data"), "expected '}'"},
      {npy_file("{'descr': '<f4, }", "data"), "without end"},
      {npy_file("{'descr': __import__('os'), }", "data"), "expected '''"},
      {npy_file("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}", "data"), "expected '''"},
      {npy_file(npy_dict("<f4", "False", "(1,)") + "x", "data"), "behind the closing brace"},
      {file_of("|O", "False", "(1,)"), "element type '|O'"},
      {file_of(">f4", "False", "(1,)"), "element type '>f4'"},
      {file_of("<i4", "False", "(1,)"), "element type '<i4'"},
      {file_of("<f4", "True", "(1,)"), "Fortran order"},
      {file_of("<f4", "0", "(1,)"), "expected True or False"},
      {file_of("<f4", "False", "(1)"), "expected ','"},
      {file_of("<f4", "False", "[1]"), "expected '('"},
      {file_of("<f4", "False", "(-1,)"), "expected a dimension"},
      {file_of("<f4", "False", "(1L,)"), "expected ','"},
      {file_of("<f4", "False", "(1,1,1,1,1)"), "more than 4 dimensions"},
      {file_of("<f4", "False", "(9223372036854775808,)"), "beyond 2^63"},
      {file_of("<f4", "False", "(4611686018427387904,)"), "4 bytes of data for shape"},
      {file_of("<f4", "False", "(4294967296,4294967296)"), "4 bytes of data for shape"},
      {file_of("<f4", "False", "(2,)"), "4 bytes of data for shape [2]"},
      {file_of("<u2", "False", "(1,)"), "4 bytes of data for shape [1]"},
  };
  for (const auto& [file, what] : cases) {
    INFO("file: " << file);
    require_error(ErrorKind::data, what, "codes.npy", [&] { NpyArray(file, "codes.npy"); });
  }
}

TEST_CASE("npy: a damaged file is refused or harmless", "[bad-input]") {
  const uint16_t codes[] = {1, 2, 3, 4, 5, 6};
  const std::string file = encode_npy(View<const uint16_t>(codes, {2, 3}));
  const auto read = [](const std::string& bytes) {
    const NpyArray array(bytes, "file");
    int64_t elements = 1;
    for (const int64_t d : array.shape()) elements *= d;
    REQUIRE(elements == array.size());
  };
  read(file);
  for (size_t length = 0; length < file.size(); ++length) {
    INFO("length " << length);
    REQUIRE_THROWS_AS(NpyArray(file.substr(0, length), "file"), Error);
  }
  REQUIRE_THROWS_AS(NpyArray(file + '\0', "file"), Error);
  // The dict fills bytes 10 to 69; a flip behind it turns padding into text or other space.
  CHECK(count_refused_flips(file, 128, read) > 8 * 60);
}

TEST_CASE("npy: the writer refuses what the format or the reader does not have", "[bad-input]") {
  REQUIRE_THROWS_AS(encode_npy(NpyType::u8, {}, "x"), Error);
  REQUIRE_THROWS_AS(encode_npy(NpyType::u8, {1, 1, 1, 1, 1}, "x"), Error);
  REQUIRE_THROWS_AS(encode_npy(NpyType::u8, {-1}, "x"), Error);
  REQUIRE_THROWS_AS(encode_npy(NpyType::u8, {1}, nullptr), Error);
}

TEST_CASE("png: pictures survive writing and reading", "[unit]") {
  const TemporaryDirectory directory;
  for (const int64_t channels : {1, 3})
    for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {28, 28}, {5, 131}}) {
      std::vector<uint8_t> pixels(size_t(height * width * channels));
      for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * i * 31 + i);
      const View<const uint8_t> image(pixels.data(), {height, width, channels});
      const std::string file = encode_png(image);
      REQUIRE(file.substr(0, 8) == "\x89PNG\r\n\x1A\n");
      CHECK(decode(file, height, width, channels) == pixels);
      CHECK(encode_png(image) == file);
      write_png(directory / "p.png", image);
      CHECK(read_file(directory / "p.png", 1 << 20) == file);
    }
}

TEST_CASE("png: text chunks", "[unit]") {
  const std::vector<uint8_t> pixels(12, 100);
  const View<const uint8_t> image(pixels.data(), {2, 2, 3});
  const std::string text = "seed = 1  # größer";
  const std::string file = encode_png(image, {{"vqlab config", text}});
  // Keyword, end, not compressed, method, no language, no translated keyword, text.
  CHECK(file.find("iTXtvqlab config" + std::string(5, '\0') + text) != std::string::npos);
  CHECK(decode(file, 2, 2, 3) == pixels);

  const std::string long_text(5000, 'x'), start = "iTXtlong" + std::string("\0\1\0\0\0", 5);
  const std::string packed = encode_png(image, {{"long", long_text}});
  CHECK(packed.size() < 1000);
  const size_t at = packed.find(start);
  REQUIRE(at != std::string::npos);
  std::string unpacked(long_text.size() + 1, '\0');
  uLongf length = unpacked.size();
  REQUIRE(uncompress(reinterpret_cast<Bytef*>(unpacked.data()), &length,
                     reinterpret_cast<const Bytef*>(packed.data() + at + start.size()),
                     packed.size() - at - start.size()) == Z_OK);
  CHECK(unpacked.substr(0, length) == long_text);
}

TEST_CASE("png: what cannot be written", "[bad-input]") {
  const std::vector<uint8_t> pixels(64);
  const auto encode = [&](std::initializer_list<int64_t> dims) {
    return encode_png(View<const uint8_t>(pixels.data(), dims));
  };
  encode({2, 2, 1});
  REQUIRE_THROWS_AS(encode({2, 2, 2}), Error);
  REQUIRE_THROWS_AS(encode({2, 2, 4}), Error);
  REQUIRE_THROWS_AS(encode({0, 2, 1}), Error);
  REQUIRE_THROWS_AS(encode({2, 2}), Error);
  const View<const uint8_t> image(pixels.data(), {2, 2, 1});
  REQUIRE_THROWS_AS(encode_png(image, {{"", "text"}}), Error);
  REQUIRE_THROWS_AS(encode_png(View<const uint8_t>(pixels.data(), {1, int64_t(1) << 31, 1})), Error);
  const TemporaryDirectory directory;
  const std::string path = directory / "absent/p.png";
  require_error(ErrorKind::usage, "No such file", path, [&] { write_png(path, image); });
}
