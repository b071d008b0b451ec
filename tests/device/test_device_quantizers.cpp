// Finite scalar quantisation, unit rows and the rotation trick on the device, bit for bit as on the CPU.
#include "device_testing.hpp"
#include "kernels/codebook/fsq.hpp"
#include "kernels/codebook/rotation.hpp"
#include "kernels/codebook/unit_rows.hpp"
#include "on_both.hpp"

namespace vqlab::testing {
namespace {

struct Rows {
  int64_t N, D, offset;
  std::string text() const {
    return "N " + std::to_string(N) + ", D " + std::to_string(D) + ", offset " + std::to_string(offset);
  }
};
constexpr Rows kRows[] = {{0, 3, 0},  {1, 1, 1},   {1, 65, 0},   {31, 3, 1},    {31, 16, 0}, {33, 5, 0},
                          {33, 1, 0}, {33, 65, 1}, {1000, 3, 0}, {1000, 16, 1}, {70, 32, 0}, {9, 300, 0}};

std::vector<float> zeros(int64_t size) { return std::vector<float>(size_t(size), 0.0f); }

// Some rows are 0, one is opposite to code 0 and one is parallel to it.
std::vector<float> special_rows(const Rows& s, const std::vector<float>& codebook) {
  std::vector<float> rows = normal_floats(s.N * s.D, 1);
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t d = 0; d < s.D; ++d) {
      float& x = rows[size_t(n * s.D + d)];
      if (n % 7 == 3) x = 0.0f;
      if (n == 5) x = -2.0f * codebook[size_t(d)];
      if (n == 10) x = 3.0f * codebook[size_t(d)];
    }
  return rows;
}

}  // namespace

TEST_CASE("device: fsq has the bits of the CPU, both ways and back from codes", "[kernels]") {
  for (const std::vector<int64_t>& levels :
       {std::vector<int64_t>{5}, {8, 6, 5}, {7, 5, 5, 5, 4}, {1000, 3}, std::vector<int64_t>(16, 2)}) {
    const FsqGrid grid = fsq_grid(levels);
    for (const int64_t N : {0, 1, 31, 33, 1000})
      for (const bool awkward : {false, true}) {
        const int64_t D = grid.D, offset = N % 2;
        require_same_on_both("fsq, N " + std::to_string(N) + ", D " + std::to_string(D), [&](auto place) {
          auto latents = place.array((awkward ? awkward_floats : normal_floats)(N * D, 1), offset),
               quantized = place.array(zeros(N * D), offset), decoded = place.array(zeros(N * D), offset),
               d_quantized = place.array(normal_floats(N * D, 2), offset),
               d_latents = place.array(zeros(N * D), offset);
          auto codes = place.array(std::vector<int32_t>(size_t(N), -1), offset),
               first_bad_row = place.array(std::vector<int32_t>{7}, offset),
               counts = place.array(std::vector<int32_t>(size_t(grid.K), -1), offset);
          run(FsqOp{.quantized = quantized.view({N, D}),
                    .codes = codes.view(),
                    .first_bad_row = first_bad_row.view(),
                    .latents = latents.view({N, D}),
                    .grid = grid,
                    .counts = N == 31 ? View<int32_t>() : counts.view()},
              place.stream());
          run(FsqDecodeOp{.quantized = decoded.view({N, D}), .codes = codes.view(), .grid = grid},
              place.stream());
          run(FsqBackwardOp{.d_latents = (awkward ? d_quantized : d_latents).view({N, D}),
                            .d_quantized = d_quantized.view({N, D}),
                            .latents = latents.view({N, D}),
                            .grid = grid},
              place.stream());
          return std::tuple(quantized.download(), codes.download(), first_bad_row.download(),
                            counts.download(), decoded.download(), d_latents.download(),
                            d_quantized.download());
        });
      }
  }
}

TEST_CASE("device: unit rows have the bits of the CPU, both ways", "[kernels]") {
  for (const Rows& s : kRows)
    for (const bool awkward : {false, true})
      for (const int32_t poisoned : {0, 1})
        require_same_on_both("unit rows, " + s.text(), [&](auto place) {
          auto input = place.array(
              awkward ? awkward_floats(s.N * s.D, 1) : special_rows(s, normal_floats(s.D, 2)), s.offset);
          auto output = place.array(zeros(s.N * s.D), s.offset),
               gradient = place.array(normal_floats(s.N * s.D, 3), s.offset),
               d_input = place.array(zeros(s.N * s.D), s.offset);
          auto gate = place.array(std::vector<int32_t>{poisoned}, s.offset);
          run(UnitRowsBackwardOp{.d_input = (awkward ? gradient : d_input).view({s.N, s.D}),
                                 .d_output = gradient.view({s.N, s.D}),
                                 .input = input.view({s.N, s.D})},
              place.stream());
          run(UnitRowsOp{.output = output.view({s.N, s.D}),
                         .input = input.view({s.N, s.D}),
                         .poisoned = gate.view()},
              place.stream());
          run(UnitRowsOp{.output = input.view({s.N, s.D}), .input = input.view({s.N, s.D}), .poisoned = {}},
              place.stream());
          return std::tuple(output.download(), input.download(), gradient.download(), d_input.download());
        });
}

TEST_CASE("device: the rotated gradient has the bits of the CPU, also in place", "[kernels]") {
  const int64_t K = 4;
  for (const Rows& s : kRows)
    for (const bool awkward : {false, true})
      require_same_on_both("rotation, " + s.text(), [&](auto place) {
        const std::vector<float> codes_of = normal_floats(K * s.D, 2);
        std::vector<int32_t> chosen(size_t(s.N), 0);
        for (size_t n = 0; n < chosen.size(); ++n) chosen[n] = n % 5 == 0 ? 0 : int32_t(n % size_t(K));
        auto latents =
            place.array(awkward ? awkward_floats(s.N * s.D, 1) : special_rows(s, codes_of), s.offset);
        auto codebook = place.array(codes_of, s.offset),
             d_quantized = place.array(normal_floats(s.N * s.D, 3), s.offset),
             d_latents = place.array(zeros(s.N * s.D), s.offset);
        auto codes = place.array(chosen, s.offset),
             fallbacks = place.array(std::vector<int32_t>{-1}, s.offset);
        run(RotationBackwardOp{.d_latents = (awkward ? d_quantized : d_latents).view({s.N, s.D}),
                               .fallbacks = fallbacks.view(),
                               .d_quantized = d_quantized.view({s.N, s.D}),
                               .latents = latents.view({s.N, s.D}),
                               .codebook = codebook.view({K, s.D}),
                               .codes = codes.view(),
                               .commitment_scale = 0.37f},
            place.stream());
        return std::tuple(d_latents.download(), d_quantized.download(), fallbacks.download());
      });
}

}  // namespace vqlab::testing
