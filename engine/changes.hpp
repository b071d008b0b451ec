// Two results of `compare`: which cases have become slower or faster.
#pragma once

#include <string>

#include "experiment/document.hpp"
#include "io/json.hpp"

namespace vqlab {

// Reads what `compare --json` printed. Throws Error(data) on a file that is missing, damaged, or something
// else.
Json read_comparison(const std::string& path);

// Two medians are told apart from this change on, in percent.
inline constexpr int64_t kLeastChange = 5;

// Why no case of the two can be compared, from what both say about where and how they were measured, or "".
std::string why_incomparable(const Json& before, const Json& now);

// Every case of either result with one of these statuses:
//   SAME  the median and the share of the ceiling have both changed by at most `percent`
//   SLOW  both are worse by more; the medians are further apart than the two interquartile ranges, each
//   relative
//         to its median, together; and the fastest new sample is slower than the old upper quartile
//   FAST  the reverse
//   AMBG  anything else: a change within the spread, of the machine as a whole (times and shares disagree),
//   or
//         of fewer than 5 samples
//   ????  not comparable, `why` says for what reason: in one result only, not timed, or measured on another
//         device or processor, by another number of threads (of the CPU), or with caches in another state
// "Worse by more than p percent" is a ratio above 1 + p / 100, "better" one below its inverse. Shares take
// part since other load slows the ceilings, which take turns with the variants, as well.
//
// Keys: percent, counts{SAME, SLOW, FAST, AMBG, ????}, cases[{op, variant, shape, dtype, status, why, old_ms,
// new_ms, ratio, old_share, new_share, repro}]; ratio is new_ms / old_ms, numbers of ???? are null. Throws
// Error(usage) if no case at all can be compared; `old_path` and `new_path` are for its words.
Json compare_results(const Json& before, const Json& now, double percent, const std::string& old_path,
                     const std::string& new_path);

// For the terminal and for the page.
Table change_table(const Json& changes);
std::string change_rule(const Json& changes);
// "2 SLOW, 0 FAST, 4 SAME, 1 AMBG, 0 ????"
std::string change_counts(const Json& changes);

}  // namespace vqlab
