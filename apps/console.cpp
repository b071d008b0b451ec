#include "console.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>

namespace vqlab {
namespace {

constexpr double kSecondsBetweenLines = 5.0;  // where there is no terminal
constexpr int kBarWidth = 20;

}  // namespace

std::string format_seconds(double seconds) {
  if (seconds < 60.0) return fmt::format("{:.0f}s", seconds);
  const int64_t whole = int64_t(seconds);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
}

Console::Console(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}
Console::~Console() { clear_bar(); }

void Console::clear_bar() {
  if (bar_shown_) std::fputs("\r\033[K", stderr);
  bar_shown_ = false;
}

void Console::print_line(const std::string& line) {
  clear_bar();
  std::fprintf(stderr, "%s\n", line.c_str());
}

void Console::note(const std::string& line) {
  if (!quiet_) print_line(line);
}

void Console::warning(const std::string& line) { print_line("warning: " + line); }

void Console::on_step(const StepReport& r, int64_t end_step, double images_per_second, double eta_seconds) {
  if (quiet_) return;
  const auto now = std::chrono::steady_clock::now();
  const bool last = r.step == end_step;
  if (!terminal_ && !last && std::chrono::duration<double>(now - last_line_).count() < kSecondsBetweenLines)
    return;
  last_line_ = now;
  std::string codes;
  if (r.has_codebook)
    codes = r.health.used == 0 ? " | codebook waits for its first latents"
                               : fmt::format(" | ppl {:.0f} used {} dead {}", r.health.perplexity,
                                             r.health.used, r.health.dead);
  const std::string classification =
      r.classification > 0.0 ? fmt::format(" class {:.4f}", r.classification) : "";
  const std::string line = fmt::format(
      "step {}/{} | loss {:.4f} (rec {:.4f} commit {:.4f}{}){} | lr {:.1e} | {:.0f} img/s | eta {}", r.step,
      end_step, r.loss, r.reconstruction, r.commitment, classification, codes, r.learning_rate,
      images_per_second, format_seconds(eta_seconds));
  if (!terminal_ || last) return print_line(line);
  const int done = int(kBarWidth * r.step / end_step);
  std::fprintf(stderr, "\r\033[K[%s%s] %s", std::string(size_t(done), '#').c_str(),
               std::string(size_t(kBarWidth - done), '.').c_str(), line.c_str());
  std::fflush(stderr);
  bar_shown_ = true;
}

void Console::on_evaluation(int64_t epoch, const Evaluation& e, bool is_best) {
  if (quiet_) return;
  std::string codes;
  if (e.codebook_size > 0)
    codes = fmt::format(" | {} of {} codes, perplexity {:.1f}", e.usage.used, e.codebook_size,
                        e.usage.perplexity);
  std::string figures = e.has_decoder ? fmt::format("mse {:.5f}, psnr {:.2f} dB", e.mse, e.psnr_db) : "";
  if (e.labelled > 0)
    figures += fmt::format("{}accuracy {:.2f} %", figures.empty() ? "" : ", ", 100.0 * e.accuracy);
  print_line(
      fmt::format("epoch {} | validation {}{}{}", epoch, figures, codes, is_best ? " | best so far" : ""));
}

}  // namespace vqlab
