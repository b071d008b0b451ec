// Readers of picture sets.
#include <zlib.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "engine/data/image_set.hpp"
#include "engine/io/file.hpp"
#include "expect_error.hpp"

using namespace vqlab;
using namespace vqlab::testing;

namespace {

std::string idx_file(const std::vector<uint32_t>& shape, const std::string& data, uint8_t type = 8) {
  std::string file = {'\0', '\0', char(type), char(shape.size())};
  for (const uint32_t size : shape)
    for (const int shift : {24, 16, 8, 0}) file += char(size >> shift & 0xFF);
  return file + data;
}

std::string gzip(const std::string& bytes) {
  const TemporaryDirectory directory;
  const gzFile file = gzopen((directory / "f").c_str(), "wb");
  REQUIRE(gzwrite(file, bytes.data(), unsigned(bytes.size())) == int(bytes.size()));
  REQUIRE(gzclose(file) == Z_OK);
  return read_file(directory / "f", 1 << 24);
}

// Bytes that differ from place to place.
std::string pattern(size_t size) {
  std::string bytes;
  for (size_t i = 0; i < size; ++i) bytes += char(i * i * 7 + i * 3 + 1);
  return bytes;
}

std::vector<uint8_t> as_bytes(const std::string& text) { return {text.begin(), text.end()}; }

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// A directory with these files.
struct DataDirectory : TemporaryDirectory {
  explicit DataDirectory(const std::vector<std::pair<std::string, std::string>>& files) {
    for (const auto& [name, bytes] : files) write_file(*this / name, bytes);
  }
};

constexpr size_t kCifarRecord = 3073;

// Records whose labels are `first_label`, `first_label` + 1 ...
std::string cifar_file(int count, int first_label) {
  std::string file;
  for (int i = 0; i < count; ++i) {
    file += char(first_label + i);
    for (size_t p = 0; p < kCifarRecord - 1; ++p) file += char(p * 5 + p / 7 + size_t(first_label + i));
  }
  return file;
}

const std::string kTrain = "train-images-idx3-ubyte", kTest = "t10k-images-idx3-ubyte";
const std::string kTrainLabels = "train-labels-idx1-ubyte";

}  // namespace

TEST_CASE("idx: grey pictures with labels", "[unit]") {
  const std::string pixels = pattern(3 * 4 * 5), test_pixels = pattern(2 * 4 * 5);
  const DataDirectory directory({{kTrain, idx_file({3, 4, 5}, pixels)},
                                 {kTrainLabels, idx_file({3}, std::string("\1\0\377", 3))},
                                 {kTest, idx_file({2, 4, 5}, test_pixels)}});
  const ImageSet train = load_image_set("idx", directory.path(), Split::train);
  CHECK(train.images().shape() == "(3, 4, 5, 1)");
  CHECK(train.pixels == as_bytes(pixels));
  CHECK(train.labels == std::vector<int32_t>{1, 0, 255});
  CHECK(train.class_names.empty());
  const ImageSet test = load_image_set("idx", directory.path(), Split::test);
  CHECK(test.pixels == as_bytes(test_pixels));
  CHECK(test.count == 2);
  CHECK(test.labels.empty());
}

TEST_CASE("idx: colour pictures", "[unit]") {
  const std::string pixels = pattern(2 * 4 * 5 * 3);
  const DataDirectory directory({{"train-images-idx4-ubyte.gz", gzip(idx_file({2, 4, 5, 3}, pixels))}});
  const ImageSet set = load_idx(directory.path(), Split::train);
  CHECK(set.images().shape() == "(2, 4, 5, 3)");
  CHECK(set.pixels == as_bytes(pixels));
}

TEST_CASE("idx: gzip gives the same set as the plain file", "[unit]") {
  // More than one read of the unpacker.
  const std::string pixels = pattern(1500 * 28 * 28), labels = pattern(1500);
  const DataDirectory plain(
      {{kTrain, idx_file({1500, 28, 28}, pixels)}, {kTrainLabels, idx_file({1500}, labels)}});
  const DataDirectory packed({{kTrain + ".gz", gzip(idx_file({1500, 28, 28}, pixels))},
                              {kTrainLabels + ".gz", gzip(idx_file({1500}, labels))}});
  const ImageSet a = load_idx(plain.path(), Split::train), b = load_idx(packed.path(), Split::train);
  CHECK(a.pixels == as_bytes(pixels));
  CHECK(b.pixels == a.pixels);
  CHECK(b.labels == a.labels);
}

TEST_CASE("idx: the largest sides are read", "[unit]") {
  const DataDirectory directory({{kTrain, idx_file({1, 4096, 1}, pattern(4096))}});
  CHECK(load_idx(directory.path(), Split::train).height == 4096);
}

TEST_CASE("idx: malformed picture files are refused", "[bad-input]") {
  const std::string data(20, 'p'), good = idx_file({1, 4, 5}, data), packed = gzip(good);
  std::string wrong_sum = packed;
  wrong_sum[wrong_sum.size() - 6] = char(wrong_sum[wrong_sum.size() - 6] ^ 1);
  const std::vector<std::array<std::string, 3>> cases = {
      {"empty", "", "truncated: it ends after 0 bytes"},
      {"one byte", std::string(1, '\0'), "truncated: it ends after 1 bytes"},
      {"header cut", good.substr(0, 9), "truncated: it ends after 9 bytes"},
      {"text", "<html>not found</html>", "not an IDX file of bytes: it starts with 3c 68 74 6d"},
      {"first bytes not zero", "\1" + good.substr(1), "not an IDX file"},
      {"floats", idx_file({1, 4, 5}, data, 0x0D), "starts with 00 00 0d 03"},
      {"no dimension", idx_file({}, data), "not an IDX file"},
      {"five dimensions", idx_file({1, 4, 5, 1, 1}, data), "not an IDX file"},
      {"labels in place of pictures", idx_file({20}, data), "1 dimensions where pictures have 3 or 4"},
      {"no pictures", idx_file({0, 4, 5}, ""), "holds no pictures"},
      {"no height", idx_file({1, 0, 5}, ""), "pictures of 0 x 5 pixels"},
      {"no width", idx_file({1, 4, 0}, ""), "pictures of 4 x 0 pixels"},
      {"too wide", idx_file({1, 1, 4097}, pattern(4097)), "pictures of 1 x 4097 pixels"},
      {"two channels", idx_file({1, 2, 5, 2}, data), "pictures of 2 channels"},
      {"four channels", idx_file({1, 1, 5, 4}, data), "pictures of 4 channels"},
      {"more promised than there is", idx_file({2, 4, 5}, data), "truncated: the header promises 40 bytes"},
      {"one byte short", good.substr(0, good.size() - 1), "truncated: it ends after 35 bytes"},
      {"one byte more", good + "x", "more than the 20 bytes"},
      {"beyond the limit", idx_file({0xFFFFFFFF, 4096, 4096}, data), "promises more than 64 GiB"},
      {"below the limit", idx_file({4000, 4096, 4096}, data), "truncated: the header promises"},
      {"gzip of a promise", gzip(idx_file({4000, 4096, 4096}, data)), "truncated: the header promises"},
      {"gzip one byte short", gzip(good.substr(0, good.size() - 1)), "truncated: it ends after 35 bytes"},
      {"gzip one byte more", gzip(good + "x"), "more than the 20 bytes"},
      {"gzip with a wrong checksum", wrong_sum, "damaged after"},
      {"gzip cut in its trailer", packed.substr(0, packed.size() - 4), "damaged after"},
      {"gzip cut in its data", packed.substr(0, packed.size() / 2), "damaged after"},
  };
  for (const auto& [name, bytes, what] : cases) {
    INFO(name);
    const DataDirectory directory({{kTrain, bytes}});
    require_error(ErrorKind::data, what, directory / kTrain,
                  [&] { load_idx(directory.path(), Split::train); });
  }
}

TEST_CASE("idx: a file cut at any byte is refused", "[bad-input]") {
  const std::string file = idx_file({1, 4, 5}, pattern(20)), packed = gzip(file);
  const DataDirectory directory({});
  for (size_t length = 0; length < file.size(); ++length) {
    INFO("plain, length " << length);
    write_file(directory / kTrain, file.substr(0, length));
    REQUIRE_THROWS_AS(load_idx(directory.path(), Split::train), Error);
  }
  for (size_t length = 0; length < packed.size(); ++length) {
    INFO("gzip, length " << length);
    write_file(directory / kTrain, packed.substr(0, length));
    REQUIRE_THROWS_AS(load_idx(directory.path(), Split::train), Error);
  }
  write_file(directory / kTrain, packed);
  CHECK(load_idx(directory.path(), Split::train).count == 1);
}

TEST_CASE("idx: malformed labels are refused", "[bad-input]") {
  const std::string images = idx_file({2, 1, 1}, "ab");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {idx_file({3}, "\1\2\3"), "3 labels for 2 pictures"},
      {idx_file({0}, ""), "0 labels for 2 pictures"},
      {idx_file({2, 1}, "\1\2"), "2 dimensions where labels have 1"},
      {idx_file({2}, "\1"), "truncated"},
      {idx_file({2}, "\1\2\3"), "more than the 2 bytes"},
      {"", "truncated: it ends after 0 bytes"},
  };
  for (const auto& [bytes, what] : cases) {
    const DataDirectory directory({{kTrain, images}, {kTrainLabels, bytes}});
    require_error(ErrorKind::data, what, directory / kTrainLabels,
                  [&] { load_idx(directory.path(), Split::train); });
  }
}

TEST_CASE("data sets: what is missing or unknown", "[bad-input]") {
  const DataDirectory directory({{kTest, idx_file({1, 1, 1}, "x")}});
  const std::string absent = directory / "absent";
  require_error(ErrorKind::usage, "unknown kind of data set 'jpeg'", "data.kind",
                [&] { load_image_set("jpeg", directory.path(), Split::train); });
  for (const char* kind : {"idx", "cifar"})
    require_error(ErrorKind::data, "directory of the data set is missing", absent,
                  [&] { load_image_set(kind, absent, Split::train); });
  require_error(ErrorKind::data, "no train-images-idx3-ubyte", directory.path(),
                [&] { load_idx(directory.path(), Split::train); });
  require_error(ErrorKind::data, "no data_batch_1.bin", directory.path(),
                [&] { load_cifar(directory.path(), Split::train); });
  require_error(ErrorKind::data, "no test_batch.bin", directory.path(),
                [&] { load_cifar(directory.path(), Split::test); });
  require_error(ErrorKind::data, "directory of the data set is missing", directory / kTest,
                [&] { load_idx(directory / kTest, Split::test); });
  std::filesystem::create_directory(directory / kTrain);
  require_error(ErrorKind::data, "directory", directory / kTrain,
                [&] { load_idx(directory.path(), Split::train); });
}

TEST_CASE("data sets: the hint names the package of Fashion-MNIST", "[bad-input]") {
  try {
    require_data_directory("/usr/share/datasets/fashion-mnist/absent");
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.hint() == "apt-get install dataset-fashion-mnist");
  }
}

TEST_CASE("cifar: pictures in planes become pixels", "[unit]") {
  const std::string first = cifar_file(300, 0).substr(0, 2 * kCifarRecord), second = cifar_file(1, 9);
  const DataDirectory directory({{"data_batch_1.bin", first},
                                 {"data_batch_3.bin", second},
                                 {"test_batch.bin", cifar_file(3, 5)},
                                 {"batches.meta.txt", "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n"}});
  const ImageSet set = load_image_set("cifar", directory.path(), Split::train);
  CHECK(set.images().shape() == "(3, 32, 32, 3)");
  CHECK(set.labels == std::vector<int32_t>{0, 1, 9});
  CHECK(set.class_names.size() == 10);
  CHECK(set.class_names[9] == "j");
  const std::string all = first + second;
  for (int64_t n = 0; n < 3; ++n)
    for (int64_t p = 0; p < 1024; ++p)
      for (int64_t c = 0; c < 3; ++c)
        REQUIRE(set.pixels[size_t((n * 1024 + p) * 3 + c)] ==
                uint8_t(all[size_t(n * 3073 + 1 + c * 1024 + p)]));
  const ImageSet test = load_cifar(directory.path(), Split::test);
  CHECK(test.labels == std::vector<int32_t>{5, 6, 7});
}

TEST_CASE("cifar: a file of many reads", "[unit]") {
  std::string file;
  for (int i = 0; i < 60; ++i) file += cifar_file(10, 0);
  const DataDirectory directory({{"test_batch.bin", file}});
  const ImageSet set = load_cifar(directory.path(), Split::test);
  REQUIRE(set.count == 600);
  for (size_t i = 0; i < 600; ++i) {
    REQUIRE(set.labels[i] == int32_t(i % 10));
    REQUIRE(set.pixels[i * 3072] == uint8_t(file[i * kCifarRecord + 1]));
    REQUIRE(set.pixels[i * 3072 + 3071] == uint8_t(file[i * kCifarRecord + 3072]));
  }
  CHECK(set.class_names.empty());
}

TEST_CASE("cifar: malformed files are refused", "[bad-input]") {
  const std::string good = cifar_file(2, 0);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "holds no pictures"},
      {good.substr(0, good.size() - 1), "6145 bytes are not a multiple of 3073"},
      {good + "x", "6147 bytes are not a multiple of 3073"},
      {good.substr(0, 3072), "3072 bytes are not a multiple of 3073"},
      {cifar_file(2, 9), "label 10 at byte 3073 is not 0 to 9"},
  };
  for (const auto& [bytes, what] : cases) {
    const DataDirectory directory({{"data_batch_2.bin", bytes}});
    require_error(ErrorKind::data, what, directory / "data_batch_2.bin",
                  [&] { load_cifar(directory.path(), Split::train); });
  }
  const DataDirectory names({{"test_batch.bin", good}, {"batches.meta.txt", "a\nb\n"}});
  require_error(ErrorKind::data, "2 class names and not 10", names / "batches.meta.txt",
                [&] { load_cifar(names.path(), Split::test); });
  const DataDirectory long_names({{"test_batch.bin", good}, {"batches.meta.txt", std::string(5000, 'a')}});
  require_error(ErrorKind::data, "longer than 4096 bytes", long_names / "batches.meta.txt",
                [&] { load_cifar(long_names.path(), Split::test); });
  const DataDirectory nested({});
  std::filesystem::create_directory(nested / "test_batch.bin");
  require_error(ErrorKind::data, "cannot read", nested / "test_batch.bin",
                [&] { load_cifar(nested.path(), Split::test); });
}
