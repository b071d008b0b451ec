// What `compare` measured, as the object that --json prints, as a table for other programs, and as a page.
#pragma once

#include <string>

#include "comparison.hpp"
#include "experiment/document.hpp"
#include "io/json.hpp"

namespace vqlab {

// "exact", "not reproducible" or "approximate".
std::string exactness(const VariantOp& op, const VariantInfo& variant);

// Where and how it was measured, and an empty list `cases`. Without ceilings nothing is timed.
Json comparison_head(const Runtime& runtime, const Ceilings* ceilings, const ComparisonOptions& options,
                     const std::string& command_line);

// An entry of `cases`. `shape_name` may be "".
Json to_json(const VariantOp& op, const VariantResult& result, const std::string& shape_name,
             const ComparisonOptions& options);

// "65536,512,64" of an entry of `cases`, or of whatever has such a shape.
std::string shape_text(const Json& row);

// The cases, a line each behind a line of names (RFC 4180).
std::string comparison_csv(const Json& result);

// Tables, a roofline, bars for each shape, and what `changes` (of two results) found, if there is such a
// member.
Document comparison_document(const Json& result);

}  // namespace vqlab
