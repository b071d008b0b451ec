// What `compare` shows on a terminal. Cases and changes are those of its JSON.
#pragma once

#include <string>

#include "engine/io/json.hpp"
#include "engine/tuning.hpp"

namespace vqlab {

// Where it is measured, the ceilings, and the heads of the columns.
void print_comparison_head(const Json& result, const std::string& product_problem);
void print_case(const Json& row);

// All changes and their counts. For slower cases an error goes to stderr, and its exit code is returned.
int print_changes(const Json& changes, bool quiet);

// "lookup at 6272,256,16: fused, 0.98 ms (without the measurement oracle)"
std::string tuned_text(const TunedChoice& choice);

}  // namespace vqlab
