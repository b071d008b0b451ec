#include "config.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <variant>

#include "kernels/codebook/fsq.hpp"
#include "kernels/core/check.hpp"
#include "kernels/core/names.hpp"
#include "quantizer.hpp"

namespace vqlab {
namespace {

// One key: where its value lives, and what it may be.
struct Field {
  std::string_view key;
  std::variant<bool*, int64_t*, double*, std::string*, std::vector<int64_t>*> value;
  double low = 0.0, high = 0.0;             // of numbers, also of each in a list
  std::vector<std::string_view> choices{};  // of text; empty = any
};

constexpr double kAnyInteger = 9.0e15;

std::vector<std::string_view> quantizer_names() {
  std::vector<std::string_view> names;
  for (const QuantizerEntry* entry : quantizers()) names.push_back(entry->name);
  return names;
}

// The only list of keys: reading, printing, checking and suggesting all loop over it.
std::vector<Field> fields(Config& c) {
  return {
      {"name", &c.name},
      {"seed", &c.seed, 0, kAnyInteger},
      {"device", &c.device, 0, 0, {"auto", "cpu", "cuda"}},
      {"threads", &c.threads, 0, 1024},
      {"data.kind", &c.data.kind, 0, 0, {"idx", "cifar"}},
      {"data.path", &c.data.path},
      {"data.validation", &c.data.validation, 0, kAnyInteger},
      {"data.labels", &c.data.labels, 0, kAnyInteger},
      {"data.flip", &c.data.flip},
      {"data.shift", &c.data.shift, 0, 64},
      {"data.mixup", &c.data.mixup, 0, 4},
      {"model.hidden", &c.model.hidden, 2, 4096},
      {"model.residual_blocks", &c.model.residual_blocks, 0, 64},
      {"model.residual_hidden", &c.model.residual_hidden, 1, 4096},
      {"model.downsampling", &c.model.downsampling, 2, 16},
      {"model.norm", &c.model.norm, 0, 0, {"none", "batch", "batch_encoder"}},
      {"quantizer.kind", &c.quantizer.kind, 0, 0, quantizer_names()},
      {"quantizer.codebook_size", &c.quantizer.codebook_size, 1, 1 << 24},
      {"quantizer.dim", &c.quantizer.dim, 1, 4096},
      {"quantizer.levels", &c.quantizer.levels, 2, kMaxFsqLevel},
      {"quantizer.decay", &c.quantizer.decay, 0, 0.999999},
      {"quantizer.initialisation", &c.quantizer.initialisation, 0, 0, {"kmeans", "uniform"}},
      {"quantizer.restart_threshold", &c.quantizer.restart_threshold, 0, 0.999999},
      {"quantizer.restart_every", &c.quantizer.restart_every, 1, kAnyInteger},
      {"quantizer.gradient", &c.quantizer.gradient, 0, 0, {"straight_through", "rotation"}},
      {"loss.reconstruction", &c.loss.reconstruction, 0, 0, {"mse_over_variance", "mse", "l1"}},
      {"loss.reconstruction_weight", &c.loss.reconstruction_weight, 0, 1e6},
      {"loss.classifier_weight", &c.loss.classifier_weight, 0, 1e6},
      {"loss.quantizer_weight", &c.loss.quantizer_weight, 0, 1e6},
      {"loss.codebook_weight", &c.loss.codebook_weight, 0, 1e6},
      {"loss.commitment_weight", &c.loss.commitment_weight, 0, 1e6},
      {"classifier.classes", &c.classifier.classes, 0, 65536},
      {"classifier.hidden", &c.classifier.hidden, 0, 65536},
      {"classifier.dropout", &c.classifier.dropout, 0, 0.99},
      {"classifier.label_smoothing", &c.classifier.label_smoothing, 0, 0.99},
      {"train.epochs", &c.train.epochs, 1, 1e6},
      {"train.batch_size", &c.train.batch_size, 1, 65536},
      {"train.learning_rate", &c.train.learning_rate, 0, 10},
      {"train.schedule", &c.train.schedule, 0, 0, {"constant", "cosine"}},
      {"train.warmup_steps", &c.train.warmup_steps, 0, kAnyInteger},
      {"train.precision", &c.train.precision, 0, 0, {"fp32", "tf32", "bf16"}},
      {"train.convolutions", &c.train.convolutions, 0, 0, {"rule", "measured", "compiled"}},
      {"train.weight_decay", &c.train.weight_decay, 0, 10},
      {"train.weight_average", &c.train.weight_average, 0, 0.999999},
      {"train.start_from", &c.train.start_from},
      {"train.gradient_clip", &c.train.gradient_clip, 0, 1e9},
      {"train.on_nan", &c.train.on_nan, 0, 0, {"stop", "skip"}},
      {"train.patience", &c.train.patience, 0, kAnyInteger},
      {"kernels.lookup", &c.kernels.lookup},
      {"kernels.cluster_sums", &c.kernels.cluster_sums},
      {"evaluate.every_epochs", &c.evaluate.every_epochs, 1, 1e6},
      {"checkpoint.every_steps", &c.checkpoint.every_steps, 1, kAnyInteger},
      {"checkpoint.keep", &c.checkpoint.keep, 1, kAnyInteger},
  };
}

std::string joined(const std::vector<std::string_view>& names) {
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string choice_hint(const Field& field, const std::string& text) {
  const std::string near = nearest_name(text, field.choices);
  const std::string all = fmt::format("choose one of {}", joined(field.choices));
  return near.empty() || field.choices.size() == 1 ? all : fmt::format("did you mean {}? {}", near, all);
}

[[noreturn]] void fail(const std::string& what, const std::string& hint, const std::string& where) {
  throw Error(ErrorKind::usage, what, hint, where);
}

void assign_number(const Field& field, double number, const std::string& where) {
  if (!(number >= field.low && number <= field.high))
    fail(fmt::format("{} = {} is out of range", field.key, number),
         fmt::format("choose a value from {} to {}", field.low, field.high), where);
}

void assign(const Field& field, const toml::node& node, const std::string& where) {
  const auto wrong_type = [&](const char* wanted) {
    std::ostringstream type;
    type << node.type();
    fail(fmt::format("{} must be {}, not a {}", field.key, wanted, type.str()),
         fmt::format("write {} = <{}>", field.key, wanted), where);
  };
  if (bool* const* flag = std::get_if<bool*>(&field.value)) {
    if (!node.is_boolean()) wrong_type("true or false");
    **flag = node.as_boolean()->get();
  } else if (int64_t* const* integer = std::get_if<int64_t*>(&field.value)) {
    if (!node.is_integer()) wrong_type("an integer");
    assign_number(field, double(node.as_integer()->get()), where);
    **integer = node.as_integer()->get();
  } else if (double* const* real = std::get_if<double*>(&field.value)) {
    if (!node.is_number()) wrong_type("a number");
    const double number =
        node.is_integer() ? double(node.as_integer()->get()) : node.as_floating_point()->get();
    assign_number(field, number, where);
    **real = number;
  } else if (std::vector<int64_t>* const* list = std::get_if<std::vector<int64_t>*>(&field.value)) {
    const toml::array* items = node.as_array();
    if (items == nullptr || items->empty() || !items->is_homogeneous<int64_t>())
      wrong_type("a list of integers, [8, 6, 5]");
    (*list)->clear();
    for (const toml::node& item : *items) {
      assign_number(field, double(item.as_integer()->get()), where);
      (*list)->push_back(item.as_integer()->get());
    }
  } else {
    if (!node.is_string()) wrong_type("text in quotes");
    const std::string& text = node.as_string()->get();
    if (!field.choices.empty() &&
        std::find(field.choices.begin(), field.choices.end(), text) == field.choices.end())
      fail(fmt::format("{} = \"{}\" is not known", field.key, text), choice_hint(field, text), where);
    *std::get<std::string*>(field.value) = text;
  }
}

// The nearest key: one with the same last part ("codebook_size"), or the section or key that is spelled most
// alike.
std::string suggest_key(const std::vector<Field>& list, const std::string& key) {
  const auto last_part = [](std::string_view k) { return k.substr(k.rfind('.') + 1); };
  std::vector<std::string_view> names;
  for (const Field& f : list) {
    if (last_part(f.key) == last_part(key)) return fmt::format("did you mean {}?", f.key);
    names.push_back(f.key);
    if (key.find('.') == std::string::npos) names.push_back(f.key.substr(0, f.key.find('.')));
  }
  const std::string near = nearest_name(key, names);
  return near.empty() ? "`vqlab train CONFIG --print-config` shows every key"
                      : fmt::format("did you mean {}?", near);
}

void assign_table(const std::vector<Field>& list, const toml::table& table, const std::string& prefix,
                  const std::string& file) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    const bool on_command_line = file.starts_with("--set");
    const std::string where = on_command_line ? file : fmt::format("{}:{}", file, node.source().begin.line);
    const auto field = std::find_if(list.begin(), list.end(), [&](const Field& f) { return f.key == key; });
    if (field != list.end()) {
      assign(*field, node, where);
    } else if (std::any_of(list.begin(), list.end(),
                           [&](const Field& f) { return f.key.starts_with(key + "."); })) {
      if (!node.is_table())
        fail(fmt::format("{} is a section, not a value", key),
             fmt::format("write [{}] and its keys below", key), where);
      assign_table(list, *node.as_table(), key + ".", file);
    } else {
      fail(fmt::format("unknown key {}", key), suggest_key(list, key), where);
    }
  }
}

std::string toml_text(bool value) { return value ? "true" : "false"; }
std::string toml_text(int64_t value) { return fmt::format("{}", value); }
std::string toml_text(double value) {
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}
std::string toml_text(const std::vector<int64_t>& values) {
  return fmt::format("[{}]", fmt::join(values, ", "));
}
std::string toml_text(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    if (static_cast<unsigned char>(c) < 0x20)
      text += fmt::format("\\u{:04x}", int(c));
    else
      text += c;
  }
  return text + "\"";
}

toml::table parse_toml(const std::string& text, const std::string& where) {
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    fail(fmt::format("malformed TOML: {}", error.description()),
         "one `key = value` a line, text in double quotes",
         fmt::format("{}:{}", where, error.source().begin.line));
  }
}

// "train.epochs=3" as a one-line TOML document; a value that is no TOML value is taken as text.
void apply_override(const std::vector<Field>& list, const std::string& text) {
  const std::string where = "--set " + text;
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    fail("an override needs the form KEY=VALUE", "for example --set train.epochs=3", where);
  const std::string key = text.substr(0, equals), value = text.substr(equals + 1);
  toml::table table;
  try {
    table = toml::parse(key + " = " + value);
  } catch (const toml::parse_error&) {
    table = parse_toml(key + " = " + toml_text(value), where);
  }
  assign_table(list, table, "", where);
}

// K and D of the kinds whose codebook is a grid.
void follow_levels(QuantizerConfig& q, const std::string& where) {
  if (int64_t(q.levels.size()) > kMaxFsqDimensions)
    fail(fmt::format("quantizer.levels has {} dimensions", q.levels.size()),
         fmt::format("choose at most {}", kMaxFsqDimensions), where);
  int64_t codes = 1;
  for (const int64_t level : q.levels) {
    codes *= level;
    if (codes > kMaxFsqCodes)
      fail(fmt::format("quantizer.levels = {} have more than {} codes", toml_text(q.levels), kMaxFsqCodes),
           "choose fewer or smaller ones, for example [8, 5, 5, 5]", where);
  }
  if (q.kind != "fsq") return;
  q.codebook_size = codes;
  q.dim = int64_t(q.levels.size());
}

void check_together(const Config& c, const std::string& where) {
  if (c.quantizer.gradient == "rotation" && !c.quantizer.kind.starts_with("vq_"))
    fail(fmt::format(
             "quantizer.gradient = \"rotation\" turns latents to codes of a learned codebook, and kind = "
             "\"{}\" has none",
             c.quantizer.kind),
         "set quantizer.gradient = \"straight_through\", or a quantizer.kind of vq_...", where);
  const int64_t d = c.model.downsampling;
  if ((d & (d - 1)) != 0)
    fail(fmt::format("model.downsampling = {} is no power of two", d), "choose 2, 4, 8 or 16", where);
  if (c.model.hidden % 2 != 0)
    fail(fmt::format("model.hidden = {} is odd", c.model.hidden), "choose an even number", where);
  if (c.train.learning_rate <= 0.0)
    fail("train.learning_rate = 0 trains nothing", "choose a positive number, for example 1e-3", where);
  if (c.train.warmup_steps > 0 && c.train.schedule != "cosine")
    fail("train.warmup_steps belongs to the cosine schedule",
         "set train.schedule = \"cosine\" or warmup_steps = 0", where);
  if (c.train.patience > 0 && c.data.validation == 0)
    fail("train.patience needs evaluations, and data.validation = 0 leaves no images for them",
         "set data.validation, or train.patience = 0", where);
  if (c.loss.reconstruction_weight == 0.0 && c.loss.classifier_weight == 0.0)
    fail("loss.reconstruction_weight = 0 and loss.classifier_weight = 0 leave nothing to learn",
         "set one of the two to a positive number", where);
  if (c.data.labels > 0 && c.loss.classifier_weight == 0.0)
    fail(fmt::format("data.labels = {} labels serve no one: loss.classifier_weight is 0", c.data.labels),
         "set loss.classifier_weight, or data.labels = 0", where);
  if (c.name.empty() || c.name.find('/') != std::string::npos)
    fail(fmt::format("name = \"{}\" cannot name a run directory", c.name), "choose a name without slashes",
         where);
}

}  // namespace

Config parse_config(const std::string& text, const std::string& where,
                    const std::vector<std::string>& overrides) {
  Config config;
  const std::vector<Field> list = fields(config);
  assign_table(list, parse_toml(text, where), "", where);
  for (const std::string& override_text : overrides) apply_override(list, override_text);
  follow_levels(config.quantizer, where);
  check_together(config, where);
  return config;
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  // An empty file is all defaults, and nothing to copy, which `<<` calls a failure.
  const auto copy = [&] { return file.peek() == std::ifstream::traits_type::eof() || text << file.rdbuf(); };
  if (!file.is_open() || !copy() || file.bad())
    fail("cannot read the configuration file",
         "pass the path of a .toml file, for example apps/configs/fmnist-s.toml; a run is continued with "
         "--resume RUN",
         path);
  return parse_config(text.str(), path, overrides);
}

std::string to_toml(const Config& config) {
  Config copy = config;
  std::string text, section;
  for (const Field& field : fields(copy)) {
    const size_t dot = field.key.find('.');
    const std::string_view table = dot == std::string_view::npos ? "" : field.key.substr(0, dot);
    if (table != section) text += fmt::format("\n[{}]\n", section = table);
    const std::string value = std::visit([](const auto* v) { return toml_text(*v); }, field.value);
    text += fmt::format("{} = {}\n", table.empty() ? field.key : field.key.substr(dot + 1), value);
  }
  return text;
}

std::vector<std::string> differing_keys(const Config& a, const Config& b,
                                        const std::vector<std::string>& ignored) {
  Config left = a, right = b;
  const std::vector<Field> l = fields(left), r = fields(right);
  std::vector<std::string> keys;
  for (size_t i = 0; i < l.size(); ++i) {
    const bool equal = std::visit(
        [&](auto* value) { return *value == *std::get<std::remove_const_t<decltype(value)>>(r[i].value); },
        l[i].value);
    if (!equal && std::find(ignored.begin(), ignored.end(), l[i].key) == ignored.end())
      keys.emplace_back(l[i].key);
  }
  return keys;
}

}  // namespace vqlab
