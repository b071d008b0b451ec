// Products of warps and warpgroups. How a tensor core rounds, NVIDIA does not say; here as measured on Hopper
// (arXiv 2512.07004): in each step of 16 (8 in tf32), all addends are cut off at the 25th bit below the
// largest, added exactly, and the sum is cut off to fp32.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "engines.hpp"
#include "grid.hpp"
#include "race.hpp"

namespace simt {
namespace {

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

float from_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return sign * (fraction != 0 ? NAN : INFINITY);
  return sign * (exponent == 0 ? std::ldexp(float(fraction), -24)
                               : std::ldexp(float(1024 + fraction), exponent - 25));
}

float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

// c + sum of a[i] b[i].
float add_products(float c, const float* a, const float* b, int count) {
  double addends[17] = {c}, largest = std::fabs(c);
  for (int i = 0; i < count; ++i) {
    addends[i + 1] = double(a[i]) * double(b[i]);
    largest = std::max(largest, std::fabs(addends[i + 1]));
  }
  const int exponent = int(std::bit_cast<uint64_t>(largest) >> 52) - 1023;
  const auto power_of_two = [](int n) { return std::bit_cast<double>(uint64_t(n + 1023) << 52); };
  if (exponent < -500 || exponent > 500) {  // all zero, or not all finite
    double sum = 0.0;
    for (int i = 0; i <= count; ++i) sum += addends[i];
    return float(sum);
  }
  const double units = power_of_two(25 - exponent);
  int64_t sum = 0;
  for (int i = 0; i <= count; ++i) sum += int64_t(addends[i] * units);  // cuts off
  const double exact = double(sum) * power_of_two(exponent - 25);
  const float nearest = float(exact);
  return std::fabs(double(nearest)) > std::fabs(exact) ? std::nextafterf(nearest, 0.0f) : nearest;
}

}  // namespace

// ---- of a warp ----

namespace {

struct MatrixRows {
  const void* row;
  uint32_t* r;
};

void hand_out_matrices(uint32_t present, void** arguments) {
  if (present != 0xffffffffu) return;  // reported by the lanes
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const auto* row = static_cast<const char*>(static_cast<MatrixRows*>(arguments[8 * i + lane / 4])->row);
      std::memcpy(static_cast<MatrixRows*>(arguments[lane])->r + i, row + lane % 4 * 4, 4);
    }
}

struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

template <Element kElement>
float element(uint32_t word, int half) {
  if (kElement == Element::tf32) return from_tf32(word);
  const auto bits = uint16_t(word >> 16 * half);
  return kElement == Element::bf16 ? from_bf16(bits) : from_f16(bits);
}

template <Element kElement>
void multiply_fragments(uint32_t, void** arguments) {
  constexpr int kHalves = kElement == Element::tf32 ? 1 : 2, kDepth = 8 * kHalves;
  float a[16][kDepth], b[8][kDepth];
  const auto of = [&](int lane) { return *static_cast<Fragments*>(arguments[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < kHalves; ++half)
      for (int part = 0; part < 2; ++part) {
        const int k = part * 4 * kHalves + t * kHalves + half;
        for (int rows = 0; rows < 2; ++rows)
          a[g + 8 * rows][k] = element<kElement>(of(lane).a[2 * part + rows], half);
        b[g][k] = element<kElement>(of(lane).b[part], half);
      }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float& d = of(lane).d[i];
      d = add_products(d, a[lane / 4 + i / 2 * 8], b[lane % 4 * 2 + i % 2], kDepth);
    }
}

}  // namespace

void load_matrices(uint32_t* r, const void* row, Place at) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail("misaligned", "ldmatrix: a row that is not aligned to 16 bytes", at);
  race::touch(row, 16, race::Kind::read, at);
  MatrixRows rows{row, r};
  meet("ldmatrix", 0xffffffffu, hand_out_matrices, &rows, at);
}

void multiply(Element element, float* d, const uint32_t* a, const uint32_t* b, Place at) {
  Fragments fragments{d, a, b};
  const Meeting functions[] = {multiply_fragments<Element::f16>, multiply_fragments<Element::bf16>,
                               multiply_fragments<Element::tf32>};
  meet("mma.sync", 0xffffffffu, functions[int(element)], &fragments, at);
}

// ---- of a warpgroup ----

namespace {

constexpr int kRows = 64, kColumns = 128, kDepth = 16, kElements = 64;

Warpgroup& my_warpgroup(const char* name, Place at) {
  Block& block = *current_thread->block;
  const unsigned number = current_thread->linear / kWarpgroup;
  if (number >= block.warpgroups.size())
    fail("divergent warpgroup", std::string(name) + ": the block has no whole warpgroup here", at);
  return block.warpgroups[number];
}

// Waits until all threads of the warpgroup have called this with the same function; the last runs it.
void meet_warpgroup(const char* name, void (*function)(void** arguments), void* argument, Place at) {
  Warpgroup& group = my_warpgroup(name, at);
  if (group.present != 0 && group.function != function)
    fail("divergent warpgroup",
         std::string("threads of one warpgroup meet in different operations: ") + group.name + " at " +
             file_and_line(group.place) + " and " + name + " at " + file_and_line(at),
         at);
  group.name = name, group.function = function, group.place = at;
  group.arguments[current_thread->linear % kWarpgroup] = argument;
  if (++group.present < kWarpgroup) return wait_here(name, at);
  group.present = 0;
  function(group.arguments);
  const unsigned first = current_thread->linear / kWarpgroup * kWarpgroup;
  for (unsigned i = first; i < first + kWarpgroup; ++i) {
    Thread* thread = current_thread->block->threads[i].get();
    if (thread != current_thread) current_grid->ready.push(thread);
  }
}

struct Product {
  float* d;
  const void *a, *b;
  bool accumulate;
  Place place;
};

uint16_t element_at(const void* operand, int row, int k) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(operand) + uintptr_t(row * 128 + k * 2);
  uint16_t bits;
  std::memcpy(&bits, reinterpret_cast<const void*>(swizzled(address)), 2);
  return bits;
}

void load_operand(float (*to)[kDepth], const void* operand, int rows, Place at) {
  for (int row = 0; row < rows; ++row) {
    for (int part = 0; part < 2; ++part) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(operand) + uintptr_t(row * 128 + part * 16);
      race::touch(reinterpret_cast<const void*>(swizzled(address)), 16, race::Kind::read, at);
    }
    for (int k = 0; k < kDepth; ++k) to[row][k] = from_f16(element_at(operand, row, k));
  }
}

void do_product(Warpgroup& group, const Product& product) {
  static float a[kRows][kDepth], b[kColumns][kDepth];
  load_operand(a, product.a, kRows, product.place);
  load_operand(b, product.b, kColumns, product.place);
  Warpgroup::InFlight& d = group.in_flight.at(product.d);
  for (int thread = 0; thread < int(kWarpgroup); ++thread)
    for (int i = 0; i < kElements; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      float& element = d.values[size_t(thread * kElements + i)];
      element = add_products(product.accumulate ? element : 0.0f, a[row], b[column], kDepth);
    }
  if (--d.products != 0) return;
  for (size_t thread = 0; thread < kWarpgroup; ++thread)
    std::memcpy(d.homes[thread], d.values.data() + thread * kElements, kElements * sizeof(float));
  group.in_flight.erase(product.d);
}

// The accumulators leave their registers, where NaN stands in until the last product on them is done.
void take_accumulators(Warpgroup& group, void** arguments) {
  Warpgroup::InFlight& d = group.in_flight[static_cast<Product*>(arguments[0])->d];
  if (d.products++ != 0) return;
  d.values.resize(kWarpgroup * kElements);
  for (size_t thread = 0; thread < kWarpgroup; ++thread) {
    float* home = static_cast<Product*>(arguments[thread])->d;
    d.homes.push_back(home);
    std::memcpy(d.values.data() + thread * kElements, home, kElements * sizeof(float));
    std::memset(home, 0xFF, kElements * sizeof(float));
  }
}

void queue_product(void** arguments) {
  const Product product = *static_cast<Product*>(arguments[0]);
  Warpgroup& group = my_warpgroup("wgmma.mma_async", product.place);
  if (!group.fenced)
    fail("wgmma", "no wgmma.fence since the accumulators could last be touched", product.place);
  for (unsigned i = 1; i < kWarpgroup; ++i) {
    const auto& other = *static_cast<Product*>(arguments[i]);
    if (other.a != product.a || other.b != product.b || other.accumulate != product.accumulate)
      fail("wgmma", "the threads of a warpgroup pass different operands", product.place);
  }
  take_accumulators(group, arguments);
  Block& block = *current_thread->block;
  const unsigned core = race::kFirstTensorCore + current_thread->linear / kWarpgroup;
  const race::Snapshot issuer = race::snapshot();
  group.open.push_back(
      [=, &group, &block] { race::run_as_engine(issuer, block, core, [&] { do_product(group, product); }); });
}

void run_first_group(Warpgroup& group) {
  for (const auto& product : group.groups.front()) product();
  group.groups.pop_front();
}

struct Wait {
  unsigned pending;
  Place place;
};

void finish_products(void** arguments) {
  const Wait wait = *static_cast<Wait*>(arguments[0]);
  Warpgroup& group = my_warpgroup("wgmma.wait_group", wait.place);
  while (group.groups.size() > wait.pending) run_first_group(group);
  if (!current_grid->error.empty()) return;
  group.fenced = false;
}

void fence_warpgroup(void** arguments) {
  my_warpgroup("wgmma.fence", *static_cast<Place*>(arguments[0])).fenced = true;
}

void commit_open(void** arguments) {
  Warpgroup& group = my_warpgroup("wgmma.commit_group", *static_cast<Place*>(arguments[0]));
  group.groups.push_back(std::move(group.open));
  group.open.clear();
  // Not under the race checker: a wait for earlier groups would then count this one as waited for.
  if (randomised() && !race::kEnabled && current_grid->random.below(4) == 0) run_first_group(group);
}

}  // namespace

void check_operand(const void* tile, Place at) {
  if (reinterpret_cast<uintptr_t>(tile) % 1024 != 0)
    fail("misaligned", "a swizzled tile that does not begin at a multiple of 1024", at);
}

void fence_products(Place at) { meet_warpgroup("wgmma.fence", fence_warpgroup, &at, at); }

void start_product(float* d, const void* a, const void* b, bool accumulate, Place at) {
  Product product{d, a, b, accumulate, at};
  meet_warpgroup("wgmma.mma_async", queue_product, &product, at);
}

void commit_products(Place at) { meet_warpgroup("wgmma.commit_group", commit_open, &at, at); }

void wait_for_products(unsigned pending, Place at) {
  Wait wait{pending, at};
  meet_warpgroup("wgmma.wait_group", finish_products, &wait, at);
  race::join_engine(race::kFirstTensorCore + current_thread->linear / kWarpgroup);
}

void change_registers(Place at) {
  meet_warpgroup(
      "setmaxnreg", [](void**) {}, nullptr, at);
}

}  // namespace simt
