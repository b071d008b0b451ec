// Whether a kernel variant does here what its definition says: small problems, each in a few milliseconds.
#pragma once

#include <string>

#include "variant_case.hpp"

namespace vqlab {

// "" if the variant passes, else what is wrong with the first problem that it fails. Problems are of odd
// shapes, with every code twice and integers whose sums are exact, so that a wrong tie rule or one wrong row
// shows; the bytes beside each result are watched. Of an inexact variant rounding is accepted as VariantOp
// says. A variant that supports none of the shapes fails. Throws nothing that the variant throws.
std::string self_test(const VariantOp& op, const Runtime& runtime, std::string_view variant);

// What self_test() says of such a variant.
inline constexpr std::string_view kNotOnThisMachine = "does not run on this machine";

// The same for one problem.
std::string self_test(VariantCase& problem, std::string_view variant);

}  // namespace vqlab
