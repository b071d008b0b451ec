// The report of an experiment: report.json with every figure, and report.md and report.html made of it.
#pragma once

#include <string>

#include "document.hpp"
#include "experiment.hpp"

namespace vqlab {

// Keys: experiment, title, vqlab, command, notes, complete, mse_levels, groups[{name, seeds, overrides,
// quantizer, reconstructs, classifier_labels, figures{KEY: {mean, min, max, n} or null}, seconds_until[{mse,
// seconds}]}], recognition[{group, feature, head, labels, accuracy}], runs[{name, seed, run, state, ...}],
// report. `report` is the path of report.md.
Json summarise(const ExperimentPlan& plan, const ExperimentOutcome& outcome,
               const ExperimentOptions& options);

// Of a summary. A figure that was not measured is a dash.
Document make_document(const ExperimentPlan& plan, const Json& report);

// The charts among its blocks (report_charts.cpp).
std::vector<Picture> figure_pictures(const ExperimentPlan& plan, const Json& report);
std::vector<Picture> training_pictures(const Json& report);
std::vector<Picture> recognition_pictures(const Json& report);

// Name of a recognition row: "vq_ema, dec_h, logistic".
std::string row_name(const Json& row);
// "0.0065" of a figure's summary, and its range over seeds; a dash for null.
Cell figure_cell(const std::string& key, const Json& summary);

// Writes report.json, report.md and report.html, each whole or not at all.
void write_report(const ExperimentPlan& plan, const Json& report, const std::string& directory);

// What a person sees at the end: the most telling columns of the report.
std::string final_table(const Json& report);

}  // namespace vqlab
