#include "compare_print.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "engine/changes.hpp"
#include "engine/comparison_report.hpp"
#include "kernels/core/check.hpp"

namespace vqlab {

void print_comparison_head(const Json& result, const std::string& product_problem) {
  const bool cpu = result.at("device").as_string() == "cpu";
  const Json& ceilings = result.at("ceilings");
  const Json& product = ceilings.at("product_tflop_s");
  fmt::print("{}\n{}: copy {:.1f} GB/s, fp32 product {}\n\n", result.at("note").as_string(),
             cpu ? fmt::format("cpu, {} threads", result.at("threads").as_integer())
                 : result.at("device").as_string(),
             ceilings.at("copy_gb_s").as_number(),
             product.is_null() ? fmt::format("not measured ({})", product_problem)
                               : fmt::format("{:.4f} TFLOP/s", product.as_number()));
  fmt::print("{:13} {:18} {:16} {:>10} {:>8} {:>5} {:>7} {:>8} {:>7} {:>4}  {}\n", "variant", "N,K,D",
             "rows right", "median ms", "iqr ms", "runs", "GB/s", "TFLOP/s", "ceiling", "regs", "status");
}

void print_case(const Json& row) {
  const int64_t checked = row.at("rows_checked").as_integer();
  fmt::print("{:13} {:18} {:6} of {:<6} ", row.at("variant").as_string(), shape_text(row),
             checked - row.at("wrong").as_integer(), checked);
  if (row.at("ms_median").is_null())
    fmt::print("{:>10} {:>8} {:>5} {:>7} {:>8} {:>7} ", "-", "-", "-", "-", "-", "-");
  else
    fmt::print("{:10.3f} {:8.3f} {:5} {:7.2f} {:8.4f} {:6.1f}% ", row.at("ms_median").as_number(),
               row.at("ms_iqr").as_number(), row.at("samples").as_integer(), row.at("gb_s").as_number(),
               row.at("tflop_s").as_number(), 100.0 * row.at("share_of_ceiling").as_number());
  const Json& registers = row.at("registers");
  fmt::print("{:>4}  {}{}\n              {}\n",
             registers.is_null() ? "-" : fmt::format("{}", registers.as_integer()),
             row.at("status").as_string(),
             row.at("exact").as_bool() ? "" : fmt::format(" ({})", row.at("exactness").as_string()),
             row.at("repro").as_string());
}

int print_changes(const Json& changes, bool quiet) {
  if (!quiet) {
    fmt::print("\nold: {}\nnew: {}\n{}", changes.at("old").as_string(), changes.at("new").as_string(),
               to_text(change_table(changes)));
    for (const Json& row : changes.at("cases").items())
      if (!row.at("why").is_null())
        fmt::print("????: {} {} at {}: {}\n", row.at("op").as_string(), row.at("variant").as_string(),
                   shape_text(row), row.at("why").as_string());
    fmt::print("{}\n", change_counts(changes));
  }
  for (const Json& row : changes.at("cases").items()) {
    if (row.at("status").as_string() != "SLOW") continue;
    fmt::print(stderr, "error: {} {} at {} is slower than before: {:.4g} ms instead of {:.4g} ({})\n",
               row.at("op").as_string(), row.at("variant").as_string(), shape_text(row),
               row.at("new_ms").as_number(), row.at("old_ms").as_number(), changes.at("old").as_string());
    fmt::print(stderr, "hint: `{}` measures it again\n", row.at("repro").as_string());
  }
  return changes.at("counts").at("SLOW").as_integer() > 0 ? int(ErrorKind::verification) : 0;
}

std::string tuned_text(const TunedChoice& choice) {
  return fmt::format(
      "{} at {}{}: {}, {:.4g} ms{}", choice.op, choice.shape.text(),
      choice.threads > 0 ? fmt::format(", {} threads", choice.threads) : "", choice.variant, choice.ms,
      choice.otherwise == choice.variant ? ""
                                         : fmt::format(" (without the measurement {})", choice.otherwise));
}

}  // namespace vqlab
