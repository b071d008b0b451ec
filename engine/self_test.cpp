#include "self_test.hpp"

#include "kernels/core/check.hpp"

namespace vqlab {
namespace {

constexpr VariantShape kShapes[] = {{1, 2, 1}, {3, 4, 7}, {33, 65, 8}, {257, 130, 19}, {129, 512, 64}};

}  // namespace

std::string self_test(VariantCase& problem, std::string_view variant) {
  const std::string at = " at " + problem.shape().text();
  try {
    problem.run(variant);
    if (const int64_t wrong = problem.wrong(); wrong > 0)
      return fmt::format("{} of {} rows are wrong{}", wrong, problem.rows_checked(), at);
    if (const std::string array = problem.overrun(); !array.empty())
      return fmt::format("writes outside of '{}'{}", array, at);
  } catch (const std::exception& error) {
    return fmt::format("fails{}: {}", at, error.what());
  }
  return "";
}

std::string self_test(const VariantOp& op, const Runtime& runtime, std::string_view variant) {
  bool any = false;
  for (const VariantShape& shape : kShapes)
    for (const CaseData data : {CaseData::hard, CaseData::plain}) {
      const std::unique_ptr<VariantCase> problem = op.make(runtime, shape, data, shape.N);
      if (!problem->supports(variant)) continue;
      any = true;
      if (std::string wrong = self_test(*problem, variant); !wrong.empty()) return wrong;
    }
  return any ? "" : std::string(kNotOnThisMachine);
}

}  // namespace vqlab
