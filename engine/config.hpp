// One experiment: the configuration file (TOML), its defaults, ranges and checks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vqlab {

struct DataConfig {
  std::string kind = "idx";                                // idx | cifar
  std::string path = "/usr/share/datasets/fashion-mnist";  // directory with the files
  int64_t validation = 5000;  // images held back from the end of the training set
  int64_t labels = 0;         // training images whose label is used, equally many of each class; 0 = all
  bool flip = false;          // random horizontal flips
  int64_t shift = 0;          // random shifts, up to so many pixels
  double mixup = 0.0;         // alpha of the Beta distribution that mixes pairs of images; 0 = off
};

struct ModelConfig {
  int64_t hidden = 32;  // channels of the latent end; half as many between the first two stages
  int64_t residual_blocks = 2;
  int64_t residual_hidden = 32;
  int64_t downsampling = 4;   // 2, 4, 8 or 16: side of the image patch that one latent stands for
  std::string norm = "none";  // none | batch | batch_encoder: behind each convolution but the last of a half
};

struct QuantizerConfig {
  std::string kind = "vq_ema";              // a name of quantizers.def
  int64_t codebook_size = 256;              // K; of fsq: the product of its levels
  int64_t dim = 16;                         // D; of fsq: their number
  std::vector<int64_t> levels = {8, 6, 5};  // of fsq: each from 2 to 1000, at most 16
  double decay = 0.99;
  std::string initialisation = "kmeans";      // kmeans | uniform
  double restart_threshold = 0.1;             // of the mean count; 0 = off
  int64_t restart_every = 5;                  // steps
  std::string gradient = "straight_through";  // straight_through | rotation, of the kinds vq_...
};

// total = reconstruction_weight * reconstruction + classifier_weight * cross-entropy
//         + quantizer_weight * (codebook_weight * codebook + commitment_weight * commitment)
struct LossConfig {
  std::string reconstruction = "mse_over_variance";  // mse_over_variance | mse | l1
  double reconstruction_weight = 1.0;                // 0: the net has no decoder
  double classifier_weight = 0.0;                    // 0: the net has no classifier
  double quantizer_weight = 1.0;
  double codebook_weight = 1.0;  // of vq_loss; the others have no such term
  double commitment_weight = 0.25;
};

// The head on the quantized latents, if loss.classifier_weight > 0.
struct ClassifierConfig {
  int64_t classes = 0;   // 0: as many as the data has, which a run's own configuration then says
  int64_t hidden = 256;  // units of its hidden layer; 0 = none
  double dropout = 0.3;  // in front of each linear layer
  double label_smoothing = 0.0;
};

struct TrainConfig {
  int64_t epochs = 5;
  int64_t batch_size = 128;
  double learning_rate = 1e-3;
  std::string schedule = "constant";  // constant | cosine, over `epochs`
  int64_t warmup_steps = 0;           // linear, of the cosine schedule
  std::string precision = "fp32";  // fp32 | tf32 | bf16: of the convolutions' products (conv/precision.hpp)
  std::string convolutions =
      "rule";                 // rule | measured | compiled: how a GPU's plans are chosen (conv_book.hpp)
  double weight_decay = 0.0;  // AdamW's, of the convolutions' weights
  double weight_average =
      0.0;                 // decay of averaged weights, which evaluations and the model's file use; 0 = off
  std::string start_from;  // a run or checkpoint whose encoder (and what else fits) the weights start from;
                           // "" = random
  double gradient_clip = 0.0;   // largest gradient norm; 0 = off
  std::string on_nan = "stop";  // stop | skip
  int64_t patience = 0;         // evaluations without improvement before stopping; 0 = off
};

// Variants of kernels by name (`vqlab compare --list`); auto: the first that supports the shape and, on a
// GPU, has passed its self-test there (kernel_choice.hpp).
struct KernelsConfig {
  std::string lookup = "auto";
  std::string cluster_sums = "auto";
};

struct Config {
  std::string name = "run";
  int64_t seed = 0;
  std::string device = "auto";
  int64_t threads = 0;  // 0 = all cores
  DataConfig data;
  ModelConfig model;
  QuantizerConfig quantizer;
  LossConfig loss;
  ClassifierConfig classifier;
  TrainConfig train;
  KernelsConfig kernels;
  struct Evaluate {
    int64_t every_epochs = 1;
  } evaluate;
  struct Checkpoint {
    int64_t every_steps = 200;
    int64_t keep = 2;  // step checkpoints kept beside `last`, `best` and step 0
  } checkpoint;
};

// Reads a file and applies `overrides` ("key=value", value in TOML syntax; a bare word is a string). Throws
// Error(usage) with file and line: unreadable file, malformed TOML, unknown key (with the nearest valid one),
// wrong type, value out of range, settings that contradict each other.
Config load_config(const std::string& path, const std::vector<std::string>& overrides);
Config parse_config(const std::string& text, const std::string& where,
                    const std::vector<std::string>& overrides);

// Every key with its value, as TOML that load_config reads back to an equal Config.
std::string to_toml(const Config& config);

// The keys on which two configs differ, except the given ones.
std::vector<std::string> differing_keys(const Config& a, const Config& b,
                                        const std::vector<std::string>& ignored);

}  // namespace vqlab
