// The figures of a report: which there are, where a member's result keeps them, how they are written; and
// their mean and range over seeds.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/io/json.hpp"

namespace vqlab {

struct Figure {
  std::string key;                 // in report.json and --chart
  std::string title;               // head of its column
  std::string unit;                // of its axis, "" for none
  std::string section;             // object of result.json that holds it
  std::string member;              // its name there
  bool of_reconstruction = false;  // says nothing about a model that is not trained to reconstruct
};
// Every figure, in the order of the report.
const std::vector<Figure>& figures();
// Null if there is none of that key.
const Figure* find_figure(const std::string& key);

// Of a member's result; nothing if it was not measured.
std::optional<double> value_of(const Figure& figure, const Json& result);

// The same with as many digits as its kind of figure deserves; a dash for what is not finite.
std::string format_figure(const std::string& key, double value);

struct Summary {
  int64_t count = 0;
  double mean = 0.0, low = 0.0, high = 0.0;

  // Adds a value; its own range if it has one.
  void add(double value) { add(value, value, value); }
  void add(double value, double value_low, double value_high);
  Json to_json() const;  // {mean, min, max, n}, or null for none
};
// Reads what to_json() wrote; count 0 for null.
Summary summary_from(const Json& json);

// Seconds of training steps until the validation MSE first was at most `level`, from a result's list of
// evaluations; nothing if it never was.
std::optional<double> seconds_until(const Json& result, double level);

}  // namespace vqlab
