// The axes of a sweep: KEY=V1,V2,... on the command line, multiplied into the members of an experiment.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vqlab {

// A key of the configuration and the values that it takes, in TOML syntax.
struct SweepAxis {
  std::string key;
  std::vector<std::string> values;
};

// "KEY=V1,V2,...". A value is a TOML value or a bare word; brackets and quotes keep their commas; `a:b:xF`
// stands for a, a F, a F F, ... up to b, and `a:b:+S` for a, a + S, ... up to b. Throws Error(usage) on
// another form, an empty value, a range that does not end, and a value given twice.
SweepAxis parse_axis(const std::string& text);

// One combination of values.
struct SweepPoint {
  std::string name;                    // "codebook_size=512,dim=8": fit for a directory; empty without axes
  std::vector<std::string> overrides;  // "KEY=VALUE" of each axis, as load_config takes them
};

// Every combination, the last axis running fastest. Throws Error(usage) for a key on two axes, too many
// members, and names that are too long or not distinct.
std::vector<SweepPoint> multiply(const std::vector<SweepAxis>& axes);

// A finite decimal number and nothing else.
std::optional<double> parse_number(std::string_view text);

// "0,1,2": distinct whole numbers from 0. Throws Error(usage).
std::vector<int64_t> parse_seeds(const std::string& text);

// "0.02,0.01": positive numbers, `option` named in the error. Throws Error(usage).
std::vector<double> parse_numbers(const std::string& text, const std::string& option);

}  // namespace vqlab
