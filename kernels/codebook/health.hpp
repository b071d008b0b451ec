// The state of a codebook in a few numbers, for every log line.
#pragma once

#include "../core/op.hpp"

namespace vqlab {

struct CodebookHealth {
  int32_t used = 0;         // codes that at least one latent of the batch took
  int32_t dead = 0;         // codes with cluster_size < threshold * mean cluster_size
  float perplexity = 0.0f;  // exp(entropy of the code frequencies) of the batch, in [1, min(N, K)]
  float mean_age = 0.0f;    // steps since a code was last used, mean over the codes
  float mean_norm = 0.0f;   // mean ||code||
  float drift = 0.0f;       // mean ||code - code before|| / mean ||code|| since the last call
};

struct CodebookHealthOp {
  View<CodebookHealth> health;     // (1)
  View<int32_t> age;               // (K), updated: 0 if used in this batch, else one more
  View<float> previous;            // (K, D), the codebook at the last call; updated. May alias a codebook
                                   // that never changes
  View<const float> codebook;      // (K, D)
  View<const int32_t> counts;      // (K), of the batch
  View<const float> cluster_size;  // (K)
  View<const int32_t> poisoned;    // (1), not 0: nothing changes
  float threshold;                 // of `dead`, in [0, 1)
  View<float> scratch;             // (2 * K)

  // Throws Error(failed) on shapes that disagree.
  void check() const;
};

void run_cpu(const CodebookHealthOp& op);
void run_cuda(const CodebookHealthOp& op, Stream stream);

// exp(entropy) of counts, and the number of codes used; shared by training and evaluation. total = sum of
// counts > 0.
struct Usage {
  int64_t used = 0;
  double perplexity = 0.0;
};
Usage usage_of(const int64_t* counts, int64_t K);

}  // namespace vqlab
