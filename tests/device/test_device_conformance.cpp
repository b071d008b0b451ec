// Each function of ptx.cuh and hopper.cuh on the device, against formulas written out here. With
// VQLAB_DUMP_GOLDEN=FOLDER every case is also written there, with the bits of its input and output, for the
// interpreter in tests/ptx; on a GPU these are golden vectors.
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "conformance.hpp"
#include "device_testing.hpp"
#include "on_both.hpp"

namespace vqlab::testing {
namespace {

using Words = std::vector<uint32_t>;

// Element i of a case's input as a number: from -4 to 4.
int small_integer(uint64_t i) { return int(random_bits({.seed = 77}, i).v[0] % 9) - 4; }

uint32_t half_of(int x) {  // a small integer
  if (x == 0) return 0;
  const int exponent = std::ilogb(double(std::abs(x)));
  const auto fraction = uint32_t(std::ldexp(std::abs(x), 10 - exponent)) & 1023;
  return uint32_t(x < 0) << 15 | uint32_t(exponent + 15) << 10 | fraction;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

double value_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

Words input_of(const ConformanceCase& c) {
  Words words(size_t(c.in_words), 0);
  for (size_t i = 0; i < words.size(); ++i) switch (c.numbers) {
      case Numbers::words:
        words[i] = uint32_t(i);
        break;
      case Numbers::halves:
        words[i] = half_of(small_integer(2 * i)) | half_of(small_integer(2 * i + 1)) << 16;
        break;
      case Numbers::bf16:
        words[i] = bits_of(float(small_integer(2 * i))) >> 16 |
                   (bits_of(float(small_integer(2 * i + 1))) & 0xffff0000u);
        break;
      case Numbers::tf32:
        words[i] = bits_of(float(small_integer(i)));
        break;
    }
  return words;
}

// ---- what is expected ----

// A sum of products, and how large it could be: the sum of the start and of |a| |b|.
struct Sum {
  double value, a_square = 0.0, b_square = 0.0, start;
  explicit Sum(double from) : value(from), start(from) {}
  void add(double a, double b) {
    value += a * b;
    a_square += a * a, b_square += b * b;
  }
  double size() const { return std::abs(start) + std::sqrt(a_square * b_square); }
};

// Of mma.sync: the words of a lane are A (4), B (2) and where D starts (4); a second product has some of them
// exchanged. number(word, half) is an operand's element. Element e of the lane's four.
Sum mma_sum(const ConformanceCase& c, const Words& in, const auto& number, int lane, int e) {
  const int per = c.numbers == Numbers::tf32 ? 1 : 2, depth = 8 * per;
  const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
  Sum sum(double(in[size_t(10 * lane + 6 + e)] % 8));
  for (const bool second : {false, true})
    for (int k = 0; k < depth; ++k) {
      // Columns of A and rows of B: lane t of a group of four has `per` neighbours, twice.
      const int t = k / per % 4, part = k / per / 4, half = k % per;
      int a_word = 2 * part + row / 8, b_word = 4 + part;
      if (second) {
        a_word = a_word == 0 ? 3 : a_word == 3 ? 0 : a_word;
        b_word = 9 - b_word;
      }
      sum.add(number(10 * (row % 8 * 4 + t) + a_word, half), number(10 * (column * 4 + t) + b_word, half));
    }
  return sum;
}

Words expected_mma(const ConformanceCase& c, const Words& in) {
  const auto number = [&](int word, int half) {
    return double(small_integer(c.numbers == Numbers::tf32 ? uint64_t(word) : uint64_t(2 * word + half)));
  };
  Words out;
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) out.push_back(bits_of(float(mma_sum(c, in, number, lane, e).value)));
  return out;
}

// Of a product of a warpgroup, for thread and accumulator: start + A B^T over dimensions [a_begin, a_begin +
// depth) of A and as many of B. The tiles, A (64 rows) before B, lie 128 bytes to a row, the 16-byte parts of
// a row exchanged by its number; number(word, half) is an element of them.
Sum product(const auto& number, int thread, int i, double start, int a_begin, int b_begin, int depth) {
  const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8,
            column = i / 4 * 8 + thread % 4 * 2 + i % 2;
  const auto element = [&](int first_word, int r, int k) {
    return number(first_word + r * 32 + (k / 8 ^ r % 8) * 4 + k % 8 / 2, k % 2);
  };
  Sum sum(start);
  for (int k = 0; k < depth; ++k)
    sum.add(element(0, row, a_begin + k), element(64 * 32, column, b_begin + k));
  return sum;
}

double small_half(int word, int half) { return small_integer(uint64_t(2 * word + half)); }

Words expected_product(int a_begin, int b_begin, int depth, bool accumulate) {
  Words out;
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < 64; ++i)
      out.push_back(bits_of(
          float(product(small_half, thread, i, accumulate ? thread - i : 0, a_begin, b_begin, depth).value)));
  return out;
}

// A box of `rows` rows that begins at (row, column), as it lies.
Words expected_tile(const ConformanceCase& c, const Words& in, int rows, int row, int column) {
  Words out(size_t(rows * 32), 0);
  for (int r = 0; r < rows; ++r)
    for (int word = 0; word < 32; ++word) {
      const int64_t y = row + r, x = column + 2 * word;
      const int part = word / 4 ^ r % 8;
      if (y >= 0 && y < c.map_rows && x >= 0 && x < c.map_columns)
        out[size_t(r * 32 + part * 4 + word % 4)] = in[size_t((y * c.map_columns + x) / 2)];
    }
  return out;
}

Words expected(const ConformanceCase& c, const Words& in) {
  const std::string name = c.name;
  Words out;
  if (name == "copy")
    for (uint32_t i = 0; i < 128; ++i) out.push_back(4 * (31 - i / 4) + i % 4);
  if (name == "copy_zeros")
    for (uint32_t i = 0; i < 128; ++i) out.push_back(i / 4 % 3 != 1 ? i : 0);
  if (name == "copy_groups")
    for (uint32_t i = 0; i < 96; ++i) out.push_back(128 * (i / 32) + 4 * (i % 32) + (i < 64 ? 1 : 2));
  if (name == "load_matrices")  // row j of matrix m is row (8 m + j) ^ 5 of the input, four words
    for (uint32_t lane = 0; lane < 32; ++lane)
      for (uint32_t m = 0; m < 4; ++m) out.push_back(4 * ((8 * m + lane / 4) ^ 5) + lane % 4);
  if (name.starts_with("mma_")) out = expected_mma(c, in);
  if (name == "barrier_phases")
    for (uint32_t i = 0; i < 192; ++i) out.push_back(i / 32 * 32 + 31 - i % 32 + i / 32);
  if (name == "expect") out = expected_tile(c, in, 16, 0, 0);
  if (name == "tile_inside") out = expected_tile(c, in, 16, 5, 0);
  if (name == "tile_column") out = expected_tile(c, in, 16, 0, 64);
  if (name == "tile_edge") out = expected_tile(c, in, 16, 12, 72);
  if (name == "tile_before") out = expected_tile(c, in, 16, -3, -16);
  if (name == "tile_outside") out = expected_tile(c, in, 16, 64, 0);
  if (name == "product") out = expected_product(0, 0, 16, false);
  if (name == "product_32") out = expected_product(16, 16, 16, false);
  if (name == "product_64") out = expected_product(32, 32, 16, false);
  if (name == "product_96") out = expected_product(48, 48, 16, false);
  if (name == "accumulate") out = expected_product(0, 0, 64, true);
  if (name == "two_groups") {
    const Words second = expected_product(16, 32, 16, false);
    out = expected_product(0, 0, 16, false);
    out.insert(out.end(), second.begin(), second.end());
  }
  if (name == "registers")
    for (uint32_t i = 0; i < 384; ++i) out.push_back(i + i / 128);
  REQUIRE(int64_t(out.size()) == c.out_words);
  return out;
}

// ---- files ----

std::string hex(const Words& words) {
  std::string text;
  for (uint32_t word : words)
    for (int byte = 0; byte < 4; ++byte) text += fmt::format("{:02x}", word >> 8 * byte & 255);
  return text;
}

void dump(const ConformanceCase& c, const Words& in, const Words& out, const std::string& folder) {
  std::ofstream file(folder + "/" + c.name + ".json");
  file << fmt::format(
      "{{\"kernel\": \"conformance_{}\", \"block\": {}, \"shared\": {},\n\"output\": \"{}\",\n", c.name,
      c.threads, c.shared_bytes, hex(out));
  if (c.map_rows == 0)
    file << fmt::format("\"input\": \"{}\"}}\n", hex(in));
  else
    file << fmt::format("\"map\": {{\"rows\": {}, \"columns\": {}, \"box_rows\": {}}}, \"input\": \"{}\"}}\n",
                        c.map_rows, c.map_columns, c.box_rows, hex(in));
  REQUIRE(file.flush().good());
}

}  // namespace

TEST_CASE("device: conformance of the functions that are one instruction", "[kernels][conformance]") {
  const char* folder = std::getenv("VQLAB_DUMP_GOLDEN");
  for (const ConformanceCase& c : conformance_cases()) {
    if (!can_run(c)) continue;
    const Words in = input_of(c), wanted = expected(c, in);
    for_each_schedule([&] {
      const DeviceArray<uint32_t> from(in), to(c.out_words);
      run_conformance(c, to.data(), from.data(), device_stream());
      const Words found = to.download();
      require_same(found, wanted, c.name);
      if (folder != nullptr) dump(c, in, found, folder);
    });
  }
}

TEST_CASE("device: conformance of tensor cores to the error bound of the lookups", "[kernels][conformance]") {
  // Half of the elements are large and few bits set, half small and all bits set: what is cut off points one
  // way.
  const auto awkward_half = [](uint64_t i) {
    const uint32_t bits = random_bits({.seed = 78}, i).v[0];
    const uint32_t exponent = (bits & 1) != 0 ? 20 : 12 + bits / 2 % 6;
    return (exponent << 10 | ((bits & 1) != 0 ? 0x200u : 0x3ffu)) | (bits >> 8 & 1) << 15;
  };
  const auto value_of = [](uint32_t half) {
    const double fraction = 1024 + (half & 1023);
    return std::ldexp((half >> 15) != 0 ? -fraction : fraction, int(half >> 10 & 31) - 25);
  };
  for (const ConformanceCase& c : conformance_cases()) {
    const bool warp = std::string_view(c.name) == "mma_f16";
    if ((!warp && std::string_view(c.name) != "accumulate") || !can_run(c)) continue;
    Words in(size_t(c.in_words), 0);
    for (size_t i = 0; i < in.size(); ++i) in[i] = awkward_half(2 * i) | awkward_half(2 * i + 1) << 16;
    const auto number = [&](int word, int half) { return value_of(in[size_t(word)] >> 16 * half & 0xffff); };
    const DeviceArray<uint32_t> from(in), to(c.out_words);
    run_conformance(c, to.data(), from.data(), device_stream());
    const Words found = to.download();
    double worst = 0.0;
    for (int64_t i = 0; i < c.out_words; ++i) {
      const Sum sum = warp ? mma_sum(c, in, number, int(i / 4), int(i % 4))
                           : product(number, int(i / 64), int(i % 64), double(i / 64 - i % 64), 0, 0, 64);
      const double steps = warp ? 2 : 4;
      worst = std::max(worst, std::abs(value_of_bits(found[size_t(i)]) - sum.value) / (steps * sum.size()));
    }
    INFO(c.name << ": the worst step loses " << worst * 0x1p24 << " times 2^-24");
    CHECK(worst > 0.0);              // else the numbers are not awkward
    CHECK(worst <= 19.0 * 0x1p-24);  // lookup_halves.cuh counts on twice this
  }
}

}  // namespace vqlab::testing
