// `vqlab profile`, and what tells it of ops.
#include "desk.hpp"
#include "engine/step_profile.hpp"
#include "expect_error.hpp"
#include "kernels/codebook/kmeans.hpp"
#include "kernels/codebook/lookup.hpp"
#include "kernels/codebook/restart.hpp"
#include "kernels/core/copy.hpp"
#include "kernels/core/fill.hpp"
#include "kernels/nn/optimizer.hpp"
#include "kernels/nn/pointwise.hpp"
#include "lab.hpp"

namespace vqlab::testing {
namespace {

const char* const kRooms[] = {"picture bytes", "pinned batch", "device batch", "encoder", "quantizer",
                              "decoder",       "losses",       "gradients",    "updates", "metrics"};

// What a watch is told, as text.
class Notes : public OpWatch {
 public:
  void before(const OpFacts& op, Stream) override { text += op_name(op.type->name()) + "("; }
  void after(Stream) override { text += ")"; }
  void enter(const char* range) override { text += std::string(range) + "{"; }
  void leave() override { text += "}"; }
  std::string text;
};

// Products of a convolution, counted one by one.
double counted_flop(const ConvGeometry& g, int64_t large, int64_t small, int64_t large_c, int64_t small_c,
                    int64_t batch) {
  int64_t pairs = 0;
  for (int64_t y = 0; y < small; ++y)
    for (int64_t x = 0; x < small; ++x)
      for (int64_t ky = 0; ky < g.kernel; ++ky)
        for (int64_t kx = 0; kx < g.kernel; ++kx) {
          const int64_t at_y = y * g.stride - g.padding + ky, at_x = x * g.stride - g.padding + kx;
          pairs += at_y >= 0 && at_y < large && at_x >= 0 && at_x < large;
        }
  return 2.0 * double(pairs * large_c * small_c * batch);
}

double flop_of(const ConvGeometry& g, int64_t side, int64_t input_c, int64_t output_c, int64_t batch) {
  const int64_t out = g.output_side(side);
  const bool normal = g.kind == ConvKind::normal;
  const View<float> input(nullptr, {batch, side, side, input_c}),
      output(nullptr, {batch, out, out, output_c}),
      weight(nullptr, {normal ? output_c : input_c, g.kernel, g.kernel, normal ? input_c : output_c});
  const double forward = ConvForwardOp{.output = output,
                                       .input = input,
                                       .weight = weight,
                                       .bias = {},
                                       .geometry = g,
                                       .activation = Activation::none,
                                       .scratch = {}}
                             .cost()
                             .flop;
  const double data =
      ConvBackwardDataOp{.d_input = input, .d_output = output, .weight = weight, .geometry = g, .scratch = {}}
          .cost()
          .flop;
  const ConvBackwardWeightOp gradient{
      .d_weight = weight, .d_bias = {}, .d_output = output, .input = input, .geometry = g, .scratch = {}};
  CHECK(forward == data);
  CHECK(forward == gradient.cost().flop);
  return forward;
}

ProfileOptions options_for(const Lab& lab, const std::vector<std::string>& overrides, int64_t first,
                           int64_t last) {
  return {.config = parse_config(tiny_config(lab.data()), "tiny", overrides), .first = first, .last = last};
}

}  // namespace

TEST_CASE("profile: the bytes of an op are those of its operands", "[unit]") {
  std::vector<float> floats(64);
  std::vector<int32_t> ints(64);
  std::vector<std::byte> bytes(1000);
  const View<float> a(floats.data(), {4, 5}), small(floats.data(), {3});
  const View<int32_t> one(ints.data(), {1}), codes(ints.data(), {4});
  const View<std::byte> scratch(bytes.data(), {1000});
  const OpFacts relu = facts_of(ReluOp{.output = a, .input = a});
  CHECK(relu.cost.bytes == 2 * 80);
  CHECK(relu.cost.flop == 0.0);
  CHECK(relu.detail == "(4, 5)");
  CHECK(op_name(relu.type->name()) == "relu");
  // Scratch is none of them, an absent operand has none, and numbers are not counted.
  const LookupOp lookup{.codes = codes,
                        .first_bad_row = one,
                        .latents = a,
                        .codebook = View<const float>(floats.data(), {3, 5}),
                        .scratch = scratch};
  CHECK(facts_of(lookup).cost.bytes == 16 + 4 + 80 + 60);
  CHECK(facts_of(lookup).cost.flop == 2 * 4 * 3 * 5);
  CHECK(operand_bytes(FillOp{.output = small, .value = 1.0f}) == 12);
  const RestartOp restart{.codebook = a,
                          .cluster_size = small,
                          .cluster_sum = {},
                          .moment1 = {},
                          .moment2 = {},
                          .replaced = one,
                          .latents = a,
                          .state = {},
                          .poisoned = {},
                          .threshold = 0.1f,
                          .every = 5,
                          .seed = 1};
  CHECK(operand_bytes(restart) == 80 + 12 + 4 + 80);
  // What is read and written counts twice.
  CHECK(facts_of(SwapOp{.a = a, .b = a}).cost.bytes == 4 * 80);
}

TEST_CASE("profile: every field of the ops is seen", "[unit]") {
  CHECK(watch_detail::field_count<FillOp>() == 2);
  CHECK(watch_detail::field_count<ReluOp>() == 2);
  CHECK(watch_detail::field_count<LookupOp>() == 6);
  CHECK(watch_detail::field_count<KMeansOp>() == 11);
  CHECK(watch_detail::field_count<RestartOp>() == 12);
  CHECK(watch_detail::field_count<AdamOp>() == 14);
}

TEST_CASE("profile: operations of a convolution are its products with pixels", "[unit]") {
  const ConvGeometry halve{.kernel = 4, .stride = 2, .padding = 1}, same{.kernel = 3, .padding = 1}, point{},
      odd{.kernel = 5, .stride = 3, .padding = 4},
      twice{.kind = ConvKind::transposed, .kernel = 4, .stride = 2, .padding = 1};
  CHECK(flop_of(halve, 28, 1, 16, 2) == counted_flop(halve, 28, 14, 1, 16, 2));
  CHECK(flop_of(same, 7, 8, 3, 3) == counted_flop(same, 7, 7, 8, 3, 3));
  CHECK(flop_of(point, 7, 8, 3, 3) == 2.0 * 49 * 8 * 3 * 3);
  CHECK(flop_of(odd, 9, 2, 5, 1) == counted_flop(odd, 9, odd.output_side(9), 2, 5, 1));
  CHECK(flop_of(twice, 7, 6, 2, 2) == counted_flop(twice, 14, 7, 2, 6, 2));
  CHECK(flop_of(same, 2, 1, 1, 1) == counted_flop(same, 2, 2, 1, 1, 1));
}

TEST_CASE("profile: a watch is told of ops and ranges in their order, also of nested ones", "[unit]") {
  std::vector<float> latents = normal_floats(40, 1), codebook(8), size(4), sum(8);
  std::vector<std::byte> scratch(size_t(kmeans_scratch_bytes(Device::cpu, 20, 4, 2)));
  int32_t bad_row = -1;
  const View<float> a(latents.data(), {20, 2});
  Notes notes;
  {
    const Watching watching(notes);
    const Range range("room");
    run(ReluOp{.output = a, .input = a}, Stream());
    run(KMeansOp{.codebook = {codebook.data(), {4, 2}},
                 .cluster_size = {size.data(), {4}},
                 .cluster_sum = {sum.data(), {4, 2}},
                 .first_bad_row = {&bad_row, {1}},
                 .latents = a,
                 .key = {.seed = 1, .use = RandomUse::kmeans},
                 .rounds = 1,
                 .count_scale = 1.0f,
                 .scratch = {scratch.data(), {int64_t(scratch.size())}}},
        Stream());
  }
  CHECK(notes.text.starts_with("room{relu()k_means(lookup()cluster_sums()"));
  CHECK(notes.text.ends_with(")}"));
  const std::string before = notes.text;
  run(ReluOp{.output = a, .input = a}, Stream());  // nobody watches
  CHECK(notes.text == before);
}

TEST_CASE("profile: an op that fails is over for the watch, and a bad one never began", "[unit][bad-input]") {
  std::vector<float> x(4);
  const View<float> a(x.data(), {4}), b(x.data(), {3});
  Notes notes;
  const Watching watching(notes);
  CHECK_THROWS_AS(run(ReluOp{.output = a, .input = b}, Stream()), Error);
  CHECK(notes.text == "");
  int32_t one = 0;
  const LookupOp without_scratch{.codes = {&one, {1}},
                                 .first_bad_row = {&one, {1}},
                                 .latents = {x.data(), {1, 4}},
                                 .codebook = {x.data(), {1, 4}},
                                 .scratch = {}};
  CHECK_THROWS_AS(run(without_scratch, Stream()), Error);
  CHECK(notes.text == "lookup()");
}

TEST_CASE("profile: names of ops", "[unit]") {
  CHECK(op_name(typeid(ConvBackwardWeightOp).name()) == "conv_backward_weight");
  CHECK(op_name(typeid(KMeansOp).name()) == "k_means");
  CHECK(op_name("no mangled name") == "no mangled name");
}

TEST_CASE("profile: rooms and ops of a step add up", "[engine]") {
  Lab lab;
  const Runtime cpu("cpu", 2);
  const StepProfile p = profile_step(options_for(lab, {}, 12, 17), cpu, lab.observer);
  REQUIRE(p.rooms.size() == 10);
  double rooms_ms = 0.0, in_rooms_ms = 0.0, ops_ms = 0.0, share = 0.0;
  for (size_t i = 0; i < 10; ++i) {
    INFO(kRooms[i]);
    CHECK(p.rooms[i].name == kRooms[i]);
    CHECK(p.rooms[i].ops_ms <= p.rooms[i].ms);
    rooms_ms += p.rooms[i].ms;
    in_rooms_ms += p.rooms[i].ops_ms;
  }
  double last = p.step_ms;
  for (const ProfiledOp& op : p.ops) {
    INFO(op.name << ", " << op.room << ", " << op.detail);
    CHECK(std::find(std::begin(kRooms), std::end(kRooms), op.room) != std::end(kRooms));
    CHECK(op.ms <= last);
    CHECK(op.ms > 0.0);
    CHECK(op.ms_min <= op.ms);
    CHECK(op.ms_min <= op.ms_median);
    CHECK(op.cost.bytes > 0.0);
    CHECK(op.gb_s() > 0.0);
    last = op.ms;
    ops_ms += op.ms;
    share += op.share;
  }
  CHECK(p.ops_ms == Approx(ops_ms));
  CHECK(in_rooms_ms == Approx(ops_ms));
  CHECK(share == Approx(p.ops_ms / p.step_ms));
  CHECK(p.ops_ms <= rooms_ms);
  CHECK(rooms_ms <= p.step_ms);
  for (const auto& [low, middle, mean] : {std::array{p.step_ms_min, p.step_ms_median, p.step_ms},
                                          {p.unwatched_ms_min, p.unwatched_ms_median, p.unwatched_ms}}) {
    CHECK(low > 0.0);
    CHECK(low <= middle);
    CHECK(low <= mean);
  }
  CHECK_FALSE(p.starts_codebook);
  const auto calls = [&](const std::string& name, const std::string& room) {
    double sum = 0.0;
    for (const ProfiledOp& op : p.ops)
      if (op.name == name && op.room == room) sum += op.calls;
    return sum;
  };
  CHECK(calls("image_input", "device batch") == Approx(1.0));
  CHECK(calls("conv_forward", "encoder") == Approx(6.0));  // 3, a residual block, to the latents
  CHECK(calls("lookup", "quantizer") == Approx(1.0));
  CHECK(calls("cluster_sums", "quantizer") == Approx(1.0));
  CHECK(calls("conv_forward", "decoder") == Approx(5.0));
  CHECK(calls("reconstruction_loss", "losses") == Approx(1.0));
  CHECK(calls("conv_backward_weight", "gradients") == Approx(11.0));
  CHECK(calls("conv_backward_data", "gradients") == Approx(10.0));
  CHECK(calls("adam", "updates") == Approx(1.0));
  CHECK(calls("record_step", "metrics") == Approx(1.0));
}

TEST_CASE("profile: a share of the ceiling is the larger of two", "[unit]") {
  const ProfiledOp op{.name = "x", .room = "y", .detail = {}, .ms = 2.0, .cost = {.bytes = 6e6, .flop = 8e9}};
  CHECK(op.gb_s() == Approx(3.0));
  CHECK(op.tflop_s() == Approx(4.0));
  CHECK(op.share_of_ceiling({.copy_gb_s = 10.0, .product_tflop_s = 5.0}) == Approx(0.8));
  CHECK(op.share_of_ceiling({.copy_gb_s = 3.0, .product_tflop_s = 50.0}) == Approx(1.0));
  CHECK(op.share_of_ceiling({.copy_gb_s = 10.0, .product_tflop_s = {}}) == Approx(0.3));
}

TEST_CASE("profile: watched training has the bits of training alone", "[engine]") {
  Lab lab;
  const Runtime cpu("cpu", 2);
  for (const char* kind : {"vq_ema", "fsq", "none"}) {
    INFO(kind);
    const ProfileOptions options = options_for(lab, {std::string("quantizer.kind=") + kind}, 3, 20);
    const StepProfile p = profile_step(options, cpu, lab.observer);
    CHECK(p.starts_codebook == (kind == std::string("vq_ema")));
    const TrainingData data = load_training_data(options.config);
    Trainer alone(options.config, cpu, data.training());
    for (int i = 0; i < 20; ++i) alone.step();
    const StepReport expected = alone.report();
    CHECK(p.final_step.step == 20);
    CHECK(p.final_step.loss == expected.loss);
    CHECK(p.final_step.gradient_norm == expected.gradient_norm);  // of all weights
  }
}

TEST_CASE("profile: a run is gone on from, and stays as it is", "[engine]") {
  Lab lab;
  lab.train("run");
  const std::string weights = lab.weights("run"), metrics = lab.metrics("run");
  const Runtime cpu("cpu", 1);
  ProfileOptions options{
      .config = load_run_config(lab.run("run")), .run = lab.run("run"), .first = 1, .last = 2};
  const StepProfile p = profile_step(options, cpu, lab.observer);
  CHECK(p.final_step.step == 26);  // the run has 24
  CHECK_FALSE(p.starts_codebook);
  CHECK(lab.weights("run") == weights);
  CHECK(lab.metrics("run") == metrics);
  options.config = load_run_config(lab.run("run"), {"model.hidden=16"});
  CHECK_THROWS_AS(profile_step(options, cpu, lab.observer), Error);
}

TEST_CASE("profile: the command prints tables or an object", "[cli]") {
  const Desk desk;
  const std::string profile = "profile " + desk.config() + " --device cpu --steps 12:14 ";
  const Json json = json_of(run_vqlab(profile + "--json --threads 1"));
  require_keys(json, {"steps", "ops", "rooms", "step_ms", "unwatched_ms", "ops_ms", "gap_ms", "ceilings",
                      "final", "device", "threads"});
  CHECK(json.at("steps").dump() == "[12, 14]");
  CHECK(json.at("rooms").items().size() == 10);
  CHECK(json.at("ops_ms").as_number() <= json.at("step_ms").as_number());
  CHECK(json.at("gap_ms").as_number() ==
        Approx(json.at("step_ms").as_number() - json.at("ops_ms").as_number()));
  REQUIRE(json.at("ops").items().size() > 20);
  for (const Json& op : json.at("ops").items()) {
    require_keys(op, {"name", "room", "operands", "calls", "ms", "ms_median", "ms_min", "share", "gb_s",
                      "tflop_s", "share_of_ceiling"});
    const bool multiplies =
        op.at("name").as_string().starts_with("conv_") || op.at("name").as_string() == "lookup";
    CHECK(op.at("tflop_s").is_null() != multiplies);
  }
  const CommandResult text = run_vqlab(profile + "--set quantizer.kind=fsq --quiet");
  CHECK(text.exit_code == 0);
  CHECK(text.err == "");
  for (const char* word : {"conv_backward_weight", "ceiling", "all ops", "pinned batch", "between rooms",
                           "steps 12 to 14", "3x3 2x2x8 > 2x2x8"})
    CHECK(text.out.find(word) != std::string::npos);
}

TEST_CASE("profile: what cannot be profiled is refused", "[cli][bad-input]") {
  const Desk desk;
  const std::string profile = "profile " + desk.config() + " --device cpu ";
  require_failure(run_vqlab(profile + "--steps 14:12"), 2, "14:12 are no steps", "--steps 20:39");
  require_failure(run_vqlab(profile + "--steps 0:3"), 2, "0:3 are no steps", "counted from 1");
  for (const char* text : {"12", "12:", ":12", "a:b", "12:14:16", "12:14x", "\"\"", "12-14"})
    require_failure(run_vqlab(profile + "--steps " + text), 2, "are no steps A:B", "--steps 20:39");
  require_failure(run_vqlab(profile + "--steps 20:25"), 2, "step 25 is beyond the last one, 24",
                  "train.epochs");
  require_failure(run_vqlab(profile), 2, "step 39 is beyond the last one, 24", "train.epochs");
  require_failure(run_vqlab(profile + "--steps 1:1001 --set train.epochs=126"), 2,
                  "1001 steps are more than 1000", "fewer");
  require_failure(run_vqlab("profile /nonexistent.toml"), 2, "/nonexistent.toml", "");
  require_failure(run_vqlab("profile " + (desk / "data")), 2, "", "");
  require_failure(run_vqlab("profile"), 2, "config", "--help");
  require_failure(run_vqlab(profile + "--steps 12:14 --set model.hiden=3"), 2, "model.hiden", "model.hidden");
  require_failure(run_vqlab(profile + "--steps 12:14 --set train.batch_size=100"), 3, "fewer than a batch",
                  "train.batch_size");
  require_failure(run_vqlab(profile + "--steps 12:14 --graph"), 2, "cannot be told apart", "--capture");
  require_failure(run_vqlab(profile + "--steps 12:14 --capture"), 6, "the device is the CPU",
                  "leave out --capture");
}

}  // namespace vqlab::testing
