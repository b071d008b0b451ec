// The charts of a comparison's page. `result` is what `compare --json` prints.
#pragma once

#include <string>
#include <vector>

#include "experiment/document.hpp"
#include "io/json.hpp"

namespace vqlab {

// In the order in which they come.
std::vector<std::string> ops_of(const Json& result);

// For each shape at which a variant of the op was timed: a bar for each variant.
std::vector<Picture> time_pictures(const Json& result, const std::string& op);

// Speed over operations per byte below what copy and product allow; svg "" if nothing was timed.
Picture roofline_picture(const Json& result);

}  // namespace vqlab
