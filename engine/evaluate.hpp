// One pass over a whole split: reconstruction quality and the use of the codebook.
#pragma once

#include <functional>
#include <optional>

#include "feeder.hpp"
#include "io/json.hpp"
#include "model.hpp"

namespace vqlab {

struct Evaluation {
  int64_t images = 0;
  bool has_decoder = true;              // false: the figures of the reconstruction are NaN
  double mse = 0.0;                     // per pixel on [0, 1], unclamped, over all images
  double nmse = 0.0;                    // mse / variance of the training pixels
  double psnr_db = 0.0;                 // of the mean mse
  double psnr_db_mean = 0.0;            // mean of the images' own
  double ssim = 0.0;                    // mean over images and channels; NaN for sides under 11
  int64_t labelled = 0;                 // images with a label, if the model has a classifier
  double accuracy = 0.0;                // share of them that the classifier recognises
  int64_t codebook_size = 0;            // 0: the model has no codes, and the rest is meaningless
  bool initialised = false;             // false: the codebook still waits for its first latents
  Usage usage{};                        // over all codes of the split
  double bits_per_image_nominal = 0.0;  // codes of an image * log2(codebook_size)
  double bits_per_image_entropy = 0.0;  // codes of an image * log2(perplexity)

  Json to_json() const;
};

// Takes images [first, first + batch) of the range, without augmentation, to latents, codes and quantized
// latents; past the end of the range the last image is repeated. Throws as require_finite_latents does.
void quantize_batch(Model& model, Feeder& feeder, const Runtime& runtime, const ImageRange& range,
                    int64_t first);

// Called for each batch: its first image in the range, and how many of the batch are real.
using BatchVisitor = std::function<void(int64_t first, int64_t count)>;

// Every image once, in order, in batches of the model's size, the last one padded. Uses the model's
// activations, and of a model in training the averaged weights, if it has them.
Evaluation evaluate(Model& model, const Runtime& runtime, const ImageRange& range, double variance,
                    bool with_ssim = true, const BatchVisitor& visit = {});

}  // namespace vqlab
