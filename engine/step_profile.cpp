#include "step_profile.hpp"

#include <cxxabi.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <map>
#include <numeric>
#include <tuple>
#include <typeindex>

#include "checkpoint.hpp"

namespace vqlab {
namespace {

constexpr int64_t kMostSteps = 1000;  // whose ops are all kept

// Points of time: of the host's clock, or of a stream's work on a GPU.
class Marks {
 public:
  explicit Marks(const Runtime& runtime) : runtime_(runtime) {}

  size_t set(Stream stream) {
    if (stream.device == Device::cpu) {
      times_.push_back(Clock::now());
      return times_.size() - 1;
    }
    events_.emplace_back(runtime_, Event::Timing::on);
    events_.back().record(stream);
    return events_.size() - 1;
  }
  // Between two marks; on a GPU both are done.
  double ms(size_t from, size_t to) const {
    if (runtime_.device() == Device::cuda) return events_[to].milliseconds_since(events_[from]);
    return std::chrono::duration<double, std::milli>(times_[to] - times_[from]).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  const Runtime& runtime_;
  std::vector<Clock::time_point> times_;
  std::vector<Event> events_;
};

struct Span {
  size_t begin = 0, end = 0;
};

// Writes down every op and every room.
class Recorder : public OpWatch {
 public:
  struct Call {
    OpFacts op;
    std::string_view room;
    Span span;
  };
  struct Room {
    std::string_view name;
    Span span;
  };
  struct Step {
    std::vector<Call> calls;
    std::vector<Room> rooms;
    Span span;
  };

  explicit Recorder(const Runtime& runtime) : marks(runtime), stream_(runtime.compute()) {}

  void begin_step() {
    const size_t calls = steps.empty() ? 0 : steps.back().calls.size();
    steps.emplace_back().calls.reserve(calls);
    steps.back().span.begin = marks.set(stream_);
  }
  void end_step() { steps.back().span.end = marks.set(stream_); }

  // An emulated device computes some of its ops by those of the CPU, whenever it gets to them: not of this
  // clock.
  void before(const OpFacts& op, Stream stream) override {
    if (stream.device != stream_.device) return;
    if (depth_++ == 0) steps.back().calls.push_back({op, room_, {.begin = marks.set(stream)}});
  }
  void after(Stream stream) override {
    if (stream.device != stream_.device) return;
    if (--depth_ == 0) steps.back().calls.back().span.end = marks.set(stream);
  }
  void enter(const char* range) override {
    room_ = range;
    steps.back().rooms.push_back({range, {.begin = marks.set(stream_)}});
  }
  void leave() override {
    steps.back().rooms.back().span.end = marks.set(stream_);
    room_ = {};
  }

  Marks marks;
  std::vector<Step> steps;

 private:
  const Stream stream_;
  int depth_ = 0;
  std::string_view room_;  // the trainer's names live as long as the program
};

// Names each op to a profiler.
class OpRanges : public OpWatch {
 public:
  void before(const OpFacts& op, Stream) override {
    std::string& name = names_[std::type_index(*op.type)];
    if (name.empty()) name = op_name(op.type->name());
    push_profiler_range(name.c_str());
  }
  void after(Stream) override { pop_profiler_range(); }
  void enter(const char*) override {}
  void leave() override {}

 private:
  std::map<std::type_index, std::string> names_;
};

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

double least(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2.0;
}

// A trainer that stands before step `first`, and what it was made of.
class Bench {
 public:
  Bench(const ProfileOptions& options, const Runtime& runtime, RunMessages& messages);

  void warm_up();
  void step() { trainer_->step(); }
  const Runtime& runtime() const { return runtime_; }
  StepReport report() { return trainer_->report(); }
  Quantizer& quantizer() { return trainer_->model().quantizer(); }
  void wait() const { runtime_.synchronize(runtime_.compute()); }

 private:
  void require_use() const;
  Trust* trust() const { return runtime_.device() == Device::cuda ? options_.trust : nullptr; }

  const ProfileOptions& options_;
  const Runtime& runtime_;
  const TrainingData data_;
  const Config config_;
  std::unique_ptr<Trainer> trainer_;
};

Bench::Bench(const ProfileOptions& options, const Runtime& runtime, RunMessages& messages)
    : options_(options),
      runtime_(runtime),
      data_(load_training_data(options.config)),
      config_(with_classes(options.config, data_)) {
  require_use();
  const MemoryPlan memory = plan_memory(config_, data_, runtime_);
  for (const std::string& line : memory.lines) messages.note(line);
  KernelChoice kernels =
      choose_kernels_of_run(config_, data_.set, runtime_, trust(), options.tuning_folder, messages);
  trainer_ = std::make_unique<Trainer>(config_, runtime_, data_.training(), memory.residency);
  Model& model = trainer_->model();
  if (!options.run.empty()) {
    const Checkpoint checkpoint(options.run, "last");
    for (const std::string& line : checkpoint.warnings()) messages.warning(line);
    checkpoint.restore(model, runtime_);
    model.convolution_book() = checkpoint.convolution_book();
    kernels = kernels_as_before(checkpoint.kernels(), kernels, runtime_, trust());
    const TrainingProgress& progress = checkpoint.progress();
    trainer_->resume_at(progress.step, progress.skipped, progress.skipped_in_a_row);
    messages.note(fmt::format("goes on from {}", checkpoint.directory()));
  }
  choose_plans_of_run(config_, model, runtime_, messages);
  use_kernels_of_run(kernels, model, runtime_, messages);
  if (options.graph) trainer_->use_graph();
}

// A run that has all its steps behind it may be profiled, too: its steps are counted from here.
void Bench::require_use() const {
  const int64_t first = options_.first, last = options_.last,
                per_epoch = data_.training().count() / config_.train.batch_size,
                steps = config_.train.epochs * per_epoch;
  if (first < 1 || last < first)
    throw Error(ErrorKind::usage, fmt::format("{}:{} are no steps", first, last),
                "the first and the last of them, counted from 1, for example --steps 20:39", "--steps");
  if (per_epoch > 0 && last > steps)  // an epoch without steps is the trainer's to refuse
    throw Error(ErrorKind::usage, fmt::format("step {} is beyond the last one, {}", last, steps),
                "profile earlier steps, or raise train.epochs", "--steps");
  if (!options_.capture && last - first >= kMostSteps)
    throw Error(ErrorKind::usage, fmt::format("{} steps are more than {}", last - first + 1, kMostSteps),
                "fewer say as much", "--steps");
  if (options_.graph && !options_.capture)
    throw Error(ErrorKind::usage, "the ops of a graph cannot be told apart by events",
                "leave out --graph, or let a profiler measure: --capture", "--graph");
  if (options_.capture && runtime_.device() == Device::cpu)
    throw Error(ErrorKind::device, "--capture is for a profiler of the GPU, and the device is the CPU",
                "leave out --capture: the CPU's ops are timed by `vqlab profile` itself", "--capture");
}

void Bench::warm_up() {
  for (int64_t step = 1; step < options_.first; ++step) trainer_->step();
  wait();
}

void capture(const ProfileOptions& options, Bench& bench) {
  OpRanges ranges;
  const Watching watching(ranges);
  const ProfilerCapture recording(bench.runtime());
  for (int64_t step = options.first; step <= options.last; ++step) bench.step();
}

void watch(Bench& bench, Recorder& recorder, size_t count) {
  const Watching watching(recorder);
  for (size_t i = 0; i < count; ++i) {
    recorder.begin_step();
    bench.step();
    recorder.end_step();
  }
  bench.wait();
}

std::vector<double> unwatched_steps(Bench& bench, size_t count) {
  Marks marks(bench.runtime());
  const Stream stream = bench.runtime().compute();
  std::vector<size_t> at = {marks.set(stream)};
  for (size_t i = 0; i < count; ++i) {
    bench.step();
    at.push_back(marks.set(stream));
  }
  bench.wait();
  std::vector<double> steps_ms;
  for (size_t i = 0; i < count; ++i) steps_ms.push_back(marks.ms(at[i], at[i + 1]));
  return steps_ms;
}

// The rows of the two tables.
void add_up(const Recorder& recorder, StepProfile& profile) {
  struct Row {
    double calls = 0.0;
    OpCost cost;
    std::vector<double> step_ms;
  };
  std::map<std::tuple<std::string_view, std::type_index, std::string>, Row> rows;
  std::map<std::string_view, double> ops_of_room;
  const size_t steps = recorder.steps.size();
  std::vector<double> steps_ms;
  for (size_t i = 0; i < steps; ++i) {
    const Recorder::Step& step = recorder.steps[i];
    steps_ms.push_back(recorder.marks.ms(step.span.begin, step.span.end));
    for (const Recorder::Call& call : step.calls) {
      Row& row = rows[{call.room, std::type_index(*call.op.type), call.op.detail}];
      const double ms = recorder.marks.ms(call.span.begin, call.span.end);
      row.step_ms.resize(steps);
      row.step_ms[i] += ms;
      row.calls += 1.0 / double(steps);
      row.cost.bytes += call.op.cost.bytes / double(steps);
      row.cost.flop += call.op.cost.flop / double(steps);
      ops_of_room[call.room] += ms / double(steps);
    }
    for (const Recorder::Room& room : step.rooms) {
      const auto known = std::find_if(profile.rooms.begin(), profile.rooms.end(),
                                      [&](const ProfiledRoom& r) { return r.name == room.name; });
      ProfiledRoom& sum = known != profile.rooms.end() ? *known : profile.rooms.emplace_back();
      sum.name = room.name;
      sum.ms += recorder.marks.ms(room.span.begin, room.span.end) / double(steps);
    }
  }
  for (ProfiledRoom& room : profile.rooms) room.ops_ms = ops_of_room[room.name];
  profile.step_ms = mean(steps_ms);
  profile.step_ms_median = median(steps_ms);
  profile.step_ms_min = least(steps_ms);
  for (const auto& [key, row] : rows) {
    const auto& [room, type, detail] = key;
    const double ms = mean(row.step_ms);
    profile.ops_ms += ms;
    profile.ops.push_back({.name = op_name(type.name()),
                           .room = std::string(room),
                           .detail = detail,
                           .calls = row.calls,
                           .ms = ms,
                           .ms_median = median(row.step_ms),
                           .ms_min = least(row.step_ms),
                           .cost = row.cost,
                           .share = ms / profile.step_ms});
  }
  std::stable_sort(profile.ops.begin(), profile.ops.end(),
                   [](const ProfiledOp& a, const ProfiledOp& b) { return a.ms > b.ms; });
}

}  // namespace

double ProfiledOp::share_of_ceiling(const Ceilings& ceilings) const {
  const double of_copy = gb_s() / ceilings.copy_gb_s;
  return ceilings.product_tflop_s ? std::max(of_copy, tflop_s() / *ceilings.product_tflop_s) : of_copy;
}

std::string op_name(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &std::free);
  std::string name = status == 0 ? text.get() : mangled;
  name.erase(0, name.rfind(':') + 1);
  if (name.ends_with("Op")) name.resize(name.size() - 2);
  std::string snake;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool upper = std::isupper(static_cast<unsigned char>(name[i])) != 0;
    if (upper && i > 0) snake += '_';
    snake += char(std::tolower(static_cast<unsigned char>(name[i])));
  }
  return snake;
}

StepProfile profile_step(const ProfileOptions& options, const Runtime& runtime, RunMessages& messages) {
  Bench bench(options, runtime, messages);
  bench.warm_up();
  StepProfile profile{
      .first = options.first, .last = options.last, .starts_codebook = !bench.quantizer().initialised()};
  const auto count = size_t(options.last - options.first + 1);
  if (options.capture) {
    capture(options, bench);
  } else {
    Recorder recorder(runtime);
    watch(bench, recorder, count);
    add_up(recorder, profile);
  }
  profile.final_step = bench.report();
  if (options.capture) return profile;
  const std::vector<double> unwatched = unwatched_steps(bench, count);
  profile.unwatched_ms = mean(unwatched);
  profile.unwatched_ms_median = median(unwatched);
  profile.unwatched_ms_min = least(unwatched);
  return profile;
}

}  // namespace vqlab
