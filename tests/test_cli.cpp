// The program as its users meet it: commands, exit codes, JSON, killed runs.
#include <csignal>

#include "desk.hpp"
#include "engine/io/file.hpp"

namespace vqlab::testing {
namespace {

namespace fs = std::filesystem;

}  // namespace

TEST_CASE("cli: help lists every command and every option has its default", "[cli]") {
  const CommandResult help = run_vqlab("--help");
  CHECK(help.exit_code == 0);
  for (const char* name :
       {"train", "eval", "reconstruct", "encode", "decode", "compare", "inspect", "doctor"})
    CHECK(help.out.find(name) != std::string::npos);
  const CommandResult eval = run_vqlab("eval --help");
  CHECK(eval.out.find("--split") != std::string::npos);
  CHECK(eval.out.find("=test") != std::string::npos);
  CHECK(eval.out.find("{train,validation,test}") != std::string::npos);
}

TEST_CASE("cli: a set goes through train and eval and encode and decode and reconstruct", "[cli]") {
  // 30 x 33 colour pictures: no side is a multiple of 4.
  const Desk desk(30, 33, 3);
  const Json trained = json_of(run_vqlab(desk.train("run") + "--json"));
  require_keys(trained, {"run", "steps", "epochs", "seconds", "images_per_second", "peak_bytes", "device",
                         "graph", "weights_sha256", "final", "stopped_by"});
  require_keys(trained.at("final"), {"loss", "reconstruction", "commitment"});
  CHECK(trained.at("steps").as_integer() == 24);
  CHECK(trained.at("stopped_by").as_string() == "epochs");
  CHECK(trained.at("weights_sha256").as_string() ==
        sha256_hex(read_file(desk / "run/ckpt/last/model.safetensors", 1 << 24)));
  for (const char* name :
       {"config.toml", "command.txt", "env.json", "metrics.jsonl", "samples/step-00000024.png"})
    CHECK(fs::exists(desk / (std::string("run/") + name)));

  for (const char* split : {"train", "validation", "test"}) {
    const Json e = json_of(run_vqlab("eval " + (desk / "run") + " --json --split " + split));
    require_keys(
        e, {"split", "images", "mse", "nmse", "psnr_db", "psnr_db_mean", "ssim", "codes_used",
            "codebook_size", "perplexity", "bits_per_image_nominal", "bits_per_image_entropy", "device"});
    CHECK(e.at("images").as_integer() == (split == std::string("train")  ? 64
                                          : split == std::string("test") ? 24
                                                                         : 16));
    CHECK(e.at("bits_per_image_nominal").as_number() == 8 * 9 * 4);
  }

  const Json encoded =
      json_of(run_vqlab("encode " + (desk / "run") + " -o " + (desk / "codes.npy") + " --json"));
  CHECK(encoded.at("shape").dump() == "[24, 8, 9]");
  CHECK(encoded.at("dtype").as_string() == "uint8");
  json_of(run_vqlab("decode " + (desk / "run") + " " + (desk / "codes.npy") + " -o " + (desk / "decoded") +
                    " --json"));
  const Json rebuilt =
      json_of(run_vqlab("reconstruct " + (desk / "run") + " --count 0 -o " + (desk / "rebuilt") + " --json"));
  CHECK(rebuilt.at("images").as_integer() == 24);
  CHECK(rebuilt.at("files").items().size() == 72);
  for (const char* index : {"00000", "00007", "00023"}) {
    const std::string name = std::string("image-") + index + "-reconstruction.png";
    CHECK(read_file(desk / ("decoded/" + name), 1 << 20) == read_file(desk / ("rebuilt/" + name), 1 << 20));
  }
}

TEST_CASE("cli: a codebook that is a grid needs no tensor in a checkpoint", "[cli]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json --set quantizer.kind=fsq --set quantizer.levels=[5,4]"));
  const Json inspected = json_of(run_vqlab("inspect " + (desk / "run") + " --json"));
  CHECK(inspected.at("codebook").at("size").as_integer() == 20);
  CHECK(inspected.at("codebook").at("norm").as_number() > 0.5);
  for (const Json& tensor : inspected.at("tensors").items())
    CHECK(tensor.at("name").as_string() != "quantize.embedding.weight");
  const Json evaluated = json_of(run_vqlab("eval " + (desk / "run") + " --json"));
  CHECK(evaluated.at("codebook_size").as_integer() == 20);
  const std::string codes = desk / "codes.npy";
  json_of(run_vqlab("encode " + (desk / "run") + " --json -o " + codes));
  json_of(run_vqlab("decode " + (desk / "run") + " " + codes + " --json -o " + (desk / "out")));
  CHECK(fs::exists(desk / "out/image-00000-reconstruction.png"));
  require_failure(
      run_vqlab(desk.train("other") + "--set quantizer.kind=fsq --set quantizer.gradient=rotation"), 2,
      "codes of a learned codebook", "straight_through");
}

TEST_CASE("cli: inspect and doctor describe themselves", "[cli]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json"));
  const Json inspected = json_of(run_vqlab("inspect " + (desk / "run") + " --json"));
  require_keys(inspected, {"config", "step", "tensors", "codebook", "findings"});
  require_keys(inspected.at("codebook"), {"used", "perplexity", "dead", "age", "norm", "drift"});
  CHECK(inspected.at("step").as_integer() == 24);
  CHECK(json_of(run_vqlab("inspect " + (desk / "run/ckpt/step-00000020") + " --json"))
            .at("step")
            .as_integer() == 20);
  CHECK(inspected.at("files").items().empty());
  const Json doctor = json_of(run_vqlab("doctor --json"));
  require_keys(doctor, {"device", "libraries", "variants", "cuda_problem", "cuda_devices"});
  const bool gpu = doctor.at("cuda_problem").as_string().empty();
  CHECK(gpu == (doctor.at("device").as_string() != "cpu"));
  int64_t on_cpu = 0;
  for (const Json& variant : doctor.at("variants").items()) {
    INFO(variant.dump());
    const bool cpu = variant.at("device").as_string() == "cpu";
    on_cpu += cpu;
    CHECK(variant.at("trusted").as_bool() == (cpu || gpu));
    if (!cpu && !gpu) CHECK(variant.at("why").as_string() == "not run: no CUDA device");
  }
  CHECK(on_cpu >= 3);
  // A library that was looked for is there, or the reason why not.
  for (const Json& library : doctor.at("libraries").items())
    if (library.at("name").as_string() != "oneDNN")
      CHECK((library.find("path") == nullptr) != (library.find("problem") == nullptr));
  CHECK(run_vqlab("doctor --sync").exit_code == 0);
}

TEST_CASE("cli: dry run and print-config leave nothing behind", "[cli]") {
  const Desk desk;
  const CommandResult dry = run_vqlab(desk.train("run") + "--dry-run");
  CHECK(dry.exit_code == 0);
  CHECK(dry.out.find("largest batch") != std::string::npos);
  CHECK(dry.out.find("memory:") != std::string::npos);
  CHECK(dry.out.find("images: 4.2 KiB, read where they are") != std::string::npos);
  const CommandResult printed = run_vqlab("train --set quantizer.dim=5 " + desk.config() + " --print-config");
  CHECK(printed.out.find("dim = 5") != std::string::npos);
  CHECK_FALSE(fs::exists(desk / "run"));
}

TEST_CASE("cli: threads 1 and 2 give the same weights", "[cli]") {
  const Desk desk;
  const Json one = json_of(run_vqlab(desk.train("a") + "--json --threads 1"));
  const Json two = json_of(run_vqlab(desk.train("b") + "--json --threads 2 --no-graph"));
  CHECK(one.at("weights_sha256").as_string() == two.at("weights_sha256").as_string());
}

TEST_CASE("cli: a run killed at any moment resumes to the same weights", "[cli]") {
  const Desk desk;
  const std::string more = " --set train.epochs=25 --set checkpoint.every_steps=3";
  const std::string whole =
      json_of(run_vqlab(desk.train("whole") + "--json" + more)).at("weights_sha256").as_string();
  for (const double seconds : {0.01, 0.03, 0.06, 0.1, 0.15, 0.2}) {
    const std::string run = "killed-" + std::to_string(seconds);
    const std::string kill = "timeout -s KILL " + std::to_string(seconds) + " " + VQLAB_BINARY + " " +
                             desk.train(run) + more + " >/dev/null 2>&1";
    const int status = std::system(kill.c_str());
    (void)status;  // whether it was killed or had finished, the next line must end at the same weights
    const bool started = fs::exists(desk / (run + "/config.toml"));
    const std::string again =
        started ? "train --resume " + (desk / run) : desk.train(run) + more + " --force";
    INFO("killed after " << seconds << " s, " << (started ? "resumed" : "before it had begun"));
    CHECK(json_of(run_vqlab(again + " --json")).at("weights_sha256").as_string() == whole);
  }
}

TEST_CASE("cli: SIGTERM and SIGINT finish the step and save and say so", "[cli]") {
  const Desk desk;
  for (const auto& [signal, code] : {std::pair{"TERM", 143}, std::pair{"INT", 130}}) {
    const std::string run = std::string("run-") + signal;
    const TemporaryDirectory scratch;
    // A run far longer than the wait; its lock file holds the process number.
    const std::string script = std::string(VQLAB_BINARY) + " " + desk.train(run) +
                               "--json --set train.epochs=1000000 >" + (scratch / "out") +
                               " 2>/dev/null & p=$!; " + "for i in $(seq 100); do [ -e " +
                               (desk / (run + "/ckpt/step-00000005")) +
                               " ] && break; sleep 0.05; done; kill -" + signal + " $p; wait $p; exit $?";
    const int status = std::system(("bash -c '" + script + "'").c_str());
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == code);
    const Json json = parse_json(read_file(scratch / "out", 1 << 20), "stdout");
    CHECK(json.at("stopped_by").as_string() == "signal");
    const Json inspected = json_of(run_vqlab("inspect " + (desk / run) + " --json"));
    CHECK(inspected.at("step").as_integer() == json.at("steps").as_integer());
  }
}

TEST_CASE("cli: unknown commands and options get the nearest name", "[bad-input]") {
  require_failure(run_vqlab("trian x.toml"), 2, "unknown command trian", "vqlab train");
  require_failure(run_vqlab("eval /nonexistent"), 2, "no such run directory", "");
  require_failure(run_vqlab("eval"), 2, "run", "--help");
  require_failure(run_vqlab("eval x --splt test"), 2, "--splt", "--help");
  require_failure(run_vqlab("eval x --split tset"), 2, "tset", "--help");
  require_failure(run_vqlab("train --threads -3 x.toml"), 2, "threads", "--help");
  require_failure(run_vqlab("train --no-graph=maybe x.toml"), 2, "no-graph", "");
  require_failure(run_vqlab("train --graph x.toml"), 2, "--graph", "--help");
}

TEST_CASE("cli: a missing configuration is named", "[bad-input]") {
  require_failure(run_vqlab("train /nonexistent.toml"), 2,
                  "cannot read the configuration file (/nonexistent.toml)", "fmnist-s.toml");
  require_failure(run_vqlab("train"), 2, "needs a configuration", "fmnist-s.toml");
  require_failure(run_vqlab("train /"), 2, "cannot read the configuration file (/)", "fmnist-s.toml");
}

TEST_CASE("cli: an empty configuration is all defaults", "[unit]") {
  const Desk desk;
  std::ofstream(desk / "empty.toml").close();
  CHECK(run_vqlab("train " + (desk / "empty.toml") + " --print-config").exit_code == 0);
}

TEST_CASE("cli: a run that does not fit into memory is refused before it starts", "[bad-input]") {
  const Desk desk;
  require_failure(
      run_vqlab(desk.train("run") + "--set quantizer.codebook_size=16777216 --set quantizer.dim=4096"), 5,
      "are available", "smaller");
  CHECK_FALSE(fs::exists(desk / "run"));
}

TEST_CASE("cli: unknown keys and impossible values name the line", "[bad-input]") {
  const Desk desk;
  std::ofstream(desk.config(), std::ios::app) << "epochs = 3\n";
  require_failure(run_vqlab(desk.train("run")), 2, "unknown key checkpoint.epochs", "did you mean");
  require_failure(
      run_vqlab("train " + std::string(VQLAB_SOURCE) + "/apps/configs/fmnist-s.toml --set train.epochs=0"), 2,
      "train.epochs = 0 is out of range (--set train.epochs=0", "from 1");
  CHECK_FALSE(fs::exists(desk / "run"));
}

TEST_CASE("cli: missing and truncated and foreign data are told apart", "[bad-input]") {
  const Desk desk;
  require_failure(run_vqlab(desk.train("run") + "--set data.path=/nonexistent"), 3, "(/nonexistent", "");
  require_failure(run_vqlab(desk.train("run") + "--set data.kind=cifar"), 3, "", "");
  const std::string images = desk / "data/train-images-idx3-ubyte";
  fs::resize_file(images, fs::file_size(images) - 100);
  require_failure(run_vqlab(desk.train("run")), 3, images, "");
  std::ofstream(images, std::ios::binary) << "these are no images, but long enough for a header";
  require_failure(run_vqlab(desk.train("run")), 3, "not an IDX file", "download");
  CHECK_FALSE(fs::exists(desk / "run"));
}

TEST_CASE("cli: a validation split that leaves nothing is refused", "[bad-input]") {
  const Desk desk;
  require_failure(run_vqlab(desk.train("run") + "--set data.validation=80"), 2,
                  "leaves none of the 80 images", "lower data.validation");
}

TEST_CASE("cli: an existing run directory is not overwritten", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json"));
  const std::string before = read_file(desk / "run/ckpt/last/model.safetensors", 1 << 24);
  require_failure(run_vqlab(desk.train("run") + "--seed 5"), 2, "exists already", "--force");
  CHECK(read_file(desk / "run/ckpt/last/model.safetensors", 1 << 24) == before);
  json_of(run_vqlab(desk.train("run") + "--seed 5 --force --json"));
  CHECK(read_file(desk / "run/ckpt/last/model.safetensors", 1 << 24) != before);
  fs::create_directories(desk / "precious");
  std::ofstream(desk / "precious/file") << "keep me";
  require_failure(run_vqlab(desk.train("precious") + "--force"), 2, "replaces run directories only",
                  "another --run");
  CHECK(read_file(desk / "precious/file", 100) == "keep me");
}

TEST_CASE("cli: an unwritable run directory is a usage error", "[bad-input]") {
  const Desk desk;
  require_failure(run_vqlab("eval " + std::string(300, 'x')), 2, "", "");
  require_failure(run_vqlab(desk.train(std::string(300, 'x'))), 2, "", "");
  require_failure(run_vqlab("train " + desk.config() + " --run /proc/vqlab-run"), 2, "/proc/vqlab-run",
                  "writable");
  require_failure(run_vqlab("train " + desk.config() + " --run " + desk.config()), 2, "is a file",
                  "another --run");
}

TEST_CASE("cli: a half made run is replaced and a foreign directory is not", "[bad-input]") {
  const Desk desk;
  fs::create_directories(desk / "half/ckpt/step-00000000");
  std::ofstream(desk / "half/run.lock") << "process 1 on nowhere";
  std::ofstream(desk / "half/config.toml.tmp") << "name = ";
  json_of(run_vqlab(desk.train("half") + "--json"));
  fs::create_directories(desk / "foreign");
  std::ofstream(desk / "foreign/run.lock") << "";
  std::ofstream(desk / "foreign/thesis.tex") << "keep me";
  require_failure(run_vqlab(desk.train("foreign")), 2, "exists already", "");
  require_failure(run_vqlab(desk.train("foreign") + "--force"), 2, "replaces run directories only", "");
  CHECK(read_file(desk / "foreign/thesis.tex", 100) == "keep me");
  fs::rename(desk / "half/config.toml", desk / "config.toml");  // a finished run, but for its configuration
  require_failure(run_vqlab(desk.train("half")), 2, "exists already", "");
  CHECK(fs::exists(desk / "half/ckpt/last/model.safetensors"));
}

TEST_CASE("cli: a locked run directory is left alone", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json"));
  const std::string command = "flock " + (desk / "run/run.lock") + " " + VQLAB_BINARY + " train --resume " +
                              (desk / "run") + " 2>" + (desk / "err");
  const int status = std::system(command.c_str());
  CHECK(WEXITSTATUS(status) == 8);
  const std::string err = read_file(desk / "err", 1 << 16);
  CHECK(err.find("error: the run directory is in use") != std::string::npos);
  CHECK(err.find("hint: ") != std::string::npos);
}

TEST_CASE("cli: of eight processes that race for a directory one wins", "[bad-input]") {
  const Desk desk;
  const std::string script = "for i in 1 2 3 4 5 6 7 8; do (" + std::string(VQLAB_BINARY) + " " +
                             desk.train("run") + "--quiet >/dev/null 2>&1; echo $? >>" + (desk / "codes") +
                             ") & done; wait";
  REQUIRE(std::system(("bash -c '" + script + "'").c_str()) == 0);
  std::ifstream codes(desk / "codes");
  int winners = 0, others = 0;
  for (int code; codes >> code;) {
    winners += code == 0;
    others += code == 8 || code == 2;  // in use, or finished already
  }
  CHECK(winners == 1);
  CHECK(others == 7);
}

TEST_CASE("cli: a disk that fills up loses nothing", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json --max-steps 10"));
  const std::string before =
      json_of(run_vqlab("inspect " + (desk / "run") + " --json")).at("weights_sha256").as_string();
  // A file size limit of 8 blocks of 1 KiB, below that of the checkpoint's files, stands for the full disk.
  const std::string command = "ulimit -f 8; " + std::string(VQLAB_BINARY) + " train --resume " +
                              (desk / "run") + " >/dev/null 2>" + (desk / "err");
  const int status = std::system(("bash -c '" + command + "'").c_str());
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 5);
  CHECK(read_file(desk / "err", 1 << 16).find("hint: ") != std::string::npos);
  CHECK(json_of(run_vqlab("inspect " + (desk / "run") + " --json")).at("weights_sha256").as_string() ==
        before);
  json_of(run_vqlab("train --json --resume " + (desk / "run")));
}

TEST_CASE("cli: damaged and foreign checkpoints are refused", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json"));
  require_failure(run_vqlab("eval " + (desk / "run") + " --checkpoint " + (desk / "nowhere")), 4,
                  "no such checkpoint", "");
  require_failure(run_vqlab("eval " + (desk / "data")), 2, "not a run directory", "");
  const std::string step = desk / "run/ckpt/step-00000020";
  const Json early = json_of(run_vqlab("eval " + (desk / "run") + " --json --checkpoint step-00000020"));
  CHECK(early.at("checkpoint_step").as_integer() == 20);
  fs::resize_file(step + "/model.safetensors", 100);
  require_failure(run_vqlab("eval " + (desk / "run") + " --checkpoint " + step), 4,
                  "has 100 bytes instead of", "");
  std::ofstream(step + "/DONE") << "{\"model";
  require_failure(run_vqlab("eval " + (desk / "run") + " --checkpoint " + step), 4, "", "");
  fs::remove(step + "/DONE");
  require_failure(run_vqlab("eval " + (desk / "run") + " --checkpoint " + step), 4, "DONE", "");
  for (const auto& entry : fs::directory_iterator(desk / "run/ckpt"))
    if (entry.is_directory() && !entry.is_symlink()) fs::remove(entry.path() / "DONE");
  require_failure(run_vqlab("eval " + (desk / "run")), 4, "", "");
}

TEST_CASE("cli: resuming with another configuration is refused", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json --max-steps 5"));
  require_failure(run_vqlab("train --resume " + (desk / "run") + " --set quantizer.dim=8"), 2,
                  "quantizer.dim differs", "device and threads only");
  require_failure(run_vqlab("train --resume " + (desk / "run") + " --force"), 2, "--resume", "");
  require_failure(run_vqlab("train --resume " + (desk / "data")), 2, "not a run directory", "");
  json_of(run_vqlab("train --json --threads 1 --resume " + (desk / "run")));
}

TEST_CASE("cli: the precision of a run is its own, for all commands", "[cli]") {
  const Desk desk;
  const std::string run = desk / "run", resume = "train --resume " + run, eval = "eval " + run + " --json";
  json_of(run_vqlab(desk.train("run") + "--json --max-steps 12 --set train.precision=bf16"));
  require_failure(run_vqlab(resume + " --set train.precision=fp32"), 2, "train.precision differs", "new run");
  require_failure(run_vqlab(desk.train("b") + "--set train.precision=bf32"), 2, "is not known",
                  "choose one of fp32, tf32, bf16");
  CHECK(json_of(run_vqlab("inspect " + run + " --json")).at("plans").is_null() ==
        (json_of(run_vqlab("doctor --json")).at("device").as_string() == "cpu"));
  const double bf16 = json_of(run_vqlab(eval)).at("mse").as_number();
  json_of(run_vqlab("encode " + run + " --json -o " + (desk / "bf16.npy")));
  const std::string config = read_file(run + "/config.toml", 1 << 20, ErrorKind::data);
  const size_t at = config.find("\"bf16\"");
  REQUIRE(at != std::string::npos);
  std::ofstream(run + "/config.toml") << config.substr(0, at) + "\"fp32\"" + config.substr(at + 6);
  CHECK(json_of(run_vqlab(eval)).at("mse").as_number() != bf16);  // the same weights, other products
}

TEST_CASE("cli: doctor shows cuDNN's plans for a card that is not here", "[cli]") {
  const std::string plans = "doctor --plans " VQLAB_SOURCE "/apps/configs/fmnist-s.toml";
  const CommandResult result = run_vqlab(plans + " --set train.precision=bf16 --card a100 --json");
  if (result.exit_code != 0)  // without CUDA or without cuDNN: says so
    return require_failure(result, 6,
                           result.err.find("cudnn") != std::string::npos ? "cudnn" : "without CUDA", "");
  const Json json = json_of(result);
  require_keys(json, {"card", "precision", "plans"});
  CHECK(json.at("precision").as_string() == "bf16");
  const Json& first = json.at("plans").items().at(0);
  require_keys(first, {"layer", "problem", "engine", "what", "workspace_bytes", "listed", "serving"});
  CHECK(first.at("layer").as_string() == "encoder.conv1");
  CHECK(first.at("what").as_string().find("precompiled, tensor cores") != std::string::npos);
  CHECK(json.at("plans").items().size() >= 40);
  require_failure(run_vqlab(plans + " --card h10"), 2, "card h10 is not known", "did you mean h100?");
  require_failure(run_vqlab("doctor --card h100"), 2, "--card belongs to --plans", "");
  require_failure(run_vqlab("doctor --plans absent.toml --card h100"), 2, "cannot read", "");
}

TEST_CASE("cli: resuming with other data is refused", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json --max-steps 5"));
  write_synthetic_set(desk / "data", 96, 8, 8, 1);
  require_failure(run_vqlab("train --resume " + (desk / "run")), 3, "not those that the run started with",
                  "");
}

TEST_CASE("cli: a learning rate that diverges ends with the cause and a good checkpoint", "[bad-input]") {
  const Desk desk;
  const CommandResult result = run_vqlab(
      desk.train("run") + "--set train.learning_rate=10 --set train.epochs=300 --set quantizer.kind=none");
  require_failure(result, 1, "is not finite", "learning_rate");
  json_of(run_vqlab("inspect " + (desk / "run") + " --json"));
}

TEST_CASE("cli: cuda without a device is refused", "[bad-input]") {
  const Desk desk;
  const CommandResult result = run_vqlab(desk.train("run") + "--device cuda");
  if (result.exit_code == 0) {
    WARN("SKIPPED: a CUDA device is present");
    return;
  }
  require_failure(result, 6, "no CUDA device can be used", "--device cpu");
  CHECK_FALSE(fs::exists(desk / "run"));
}

TEST_CASE("cli: codes that do not belong to the model are refused", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("a") + "--json"));
  json_of(run_vqlab(desk.train("b") + "--json --seed 1"));
  json_of(run_vqlab(desk.train("plain") + "--json --set quantizer.kind=none"));
  json_of(run_vqlab(desk.train("early") + "--json --max-steps 2"));
  const std::string codes = desk / "codes.npy", out = " -o " + (desk / "out");
  json_of(run_vqlab("encode " + (desk / "a") + " --json -o " + codes));
  require_failure(run_vqlab("decode " + (desk / "b") + " " + codes + out), 3, "other weights", "");
  require_failure(run_vqlab("decode " + (desk / "plain") + " " + codes + out), 2, "plain autoencoder",
                  "vq_ema");
  require_failure(run_vqlab("encode " + (desk / "plain") + " -o " + codes), 2, "plain autoencoder", "vq_ema");
  require_failure(run_vqlab("encode " + (desk / "early") + " -o " + codes), 2, "not initialised yet", "");
  require_failure(run_vqlab("decode " + (desk / "a") + " " + desk.config() + out), 3, "", "");
  fs::resize_file(codes, fs::file_size(codes) - 1);
  require_failure(run_vqlab("decode " + (desk / "a") + " " + codes + out), 3, "damaged", "");
}

TEST_CASE("cli: the validation split of a run without one is refused", "[bad-input]") {
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json --set data.validation=0"));
  require_failure(run_vqlab("eval " + (desk / "run") + " --split validation"), 2, "no images",
                  "--split test");
}

TEST_CASE("cli: an error under --json is one object", "[bad-input]") {
  const CommandResult result = run_vqlab("eval /nonexistent --json");
  CHECK(result.exit_code == 2);
  const Json error = parse_json(result.out, "stdout").at("error");
  require_keys(error, {"what", "where", "hint", "code"});
  CHECK(error.at("code").as_integer() == 2);
}

TEST_CASE("cli: output that cannot be written is an error", "[bad-input]") {
  const int status = std::system((std::string(VQLAB_BINARY) + " doctor >/dev/full 2>/dev/null").c_str());
  CHECK(WEXITSTATUS(status) == 5);
  const Desk desk;
  json_of(run_vqlab(desk.train("run") + "--json"));
  require_failure(run_vqlab("encode " + (desk / "run") + " -o /nonexistent/codes.npy"), 2,
                  "/nonexistent/codes.npy", "");
  require_failure(run_vqlab("reconstruct " + (desk / "run") + " -o /proc/pictures"), 2, "/proc/pictures", "");
}

}  // namespace vqlab::testing
