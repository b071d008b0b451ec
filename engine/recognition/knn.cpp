#include "knn.hpp"

#include <algorithm>
#include <map>

#include "kernels/core/parallel.hpp"

namespace vqlab {
namespace {

constexpr int64_t kPiece = 256;  // training rows of one lookup
constexpr int64_t kQueryBatch = 4096;

struct Neighbour {
  double distance;
  int64_t row;
  bool operator<(const Neighbour& other) const {
    return distance != other.distance ? distance < other.distance : row < other.row;
  }
};

VQ_MULTIVERSION double squared_distance(const float* a, const float* b, int64_t size) {
  constexpr int64_t kLanes = 16;
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) {
      const double difference = double(a[i + l]) - double(b[i + l]);
      lane[l] += difference * difference;
    }
  for (int64_t l = 0; i + l < size; ++l) {
    const double difference = double(a[i + l]) - double(b[i + l]);
    lane[l] += difference * difference;
  }
  double sum = 0.0;
  for (const double value : lane) sum += value;
  return sum;
}

// The nearest training row of each piece, for a batch of queries on the device.
class PieceSearch {
 public:
  PieceSearch(const Runtime& runtime, const FeatureMatrix& training, const LookupVariant* lookup)
      : runtime_(runtime), training_(training), lookup_(lookup) {
    const int64_t D = training.dims;
    const auto plan = [&] {
      piece_ = slab_.take<float>({kPiece, D});
      queries_ = slab_.take<float>({kQueryBatch, D});
      codes_ = slab_.take<int32_t>({kQueryBatch});
      first_bad_row_ = slab_.take<int32_t>({1});
      scratch_ =
          slab_.take<std::byte>({lookup_scratch_bytes(runtime.compute().device, kQueryBatch, kPiece, D)});
    };
    plan();
    slab_.allocate(runtime);
    plan();
  }
  int64_t pieces() const { return (training_.rows + kPiece - 1) / kPiece; }
  // nearest (count, pieces), rows of the training matrix.
  std::vector<int64_t> nearest(const float* queries, int64_t count) {
    const int64_t D = training_.dims;
    const Stream stream = runtime_.compute();
    runtime_.upload(queries_.data, queries, count * D * int64_t(sizeof(float)), stream);
    std::vector<int64_t> nearest(size_t(count * pieces()));
    for (int64_t piece = 0; piece < pieces(); ++piece) {
      const int64_t begin = piece * kPiece, size = std::min(kPiece, training_.rows - begin);
      runtime_.upload(piece_.data, training_.row(begin), size * D * int64_t(sizeof(float)), stream);
      run(LookupOp{.codes = View<int32_t>(codes_.data, {count}),
                   .first_bad_row = first_bad_row_,
                   .latents = View<const float>(queries_.data, {count, D}),
                   .codebook = View<const float>(piece_.data, {size, D}),
                   .scratch = scratch_,
                   .variant = lookup_ != nullptr && lookup_->supports(count, size, D) ? lookup_ : nullptr},
          stream);
      const std::vector<int32_t> codes = to_host(View<const int32_t>(codes_.data, {count}), runtime_);
      for (int64_t q = 0; q < count; ++q) nearest[size_t(q * pieces() + piece)] = begin + codes[size_t(q)];
    }
    return nearest;
  }

 private:
  const Runtime& runtime_;
  const FeatureMatrix& training_;
  const LookupVariant* const lookup_;
  Slab slab_{"nearest neighbours"};
  View<float> piece_, queries_;
  View<int32_t> codes_, first_bad_row_;
  View<std::byte> scratch_;
};

// The k nearest, from the nearest row of each piece.
std::vector<Neighbour> k_nearest(const FeatureMatrix& training, const float* query, const int64_t* nearest,
                                 int64_t pieces, int64_t k) {
  std::vector<Neighbour> winners;
  for (int64_t p = 0; p < pieces; ++p)
    winners.push_back({squared_distance(query, training.row(nearest[p]), training.dims), nearest[p]});
  std::sort(winners.begin(), winners.end());
  std::vector<Neighbour> found;
  for (int64_t w = 0; w < std::min(k, pieces); ++w) {
    const int64_t begin = winners[size_t(w)].row / kPiece * kPiece,
                  end = std::min(training.rows, begin + kPiece);
    for (int64_t row = begin; row < end; ++row)
      found.push_back({squared_distance(query, training.row(row), training.dims), row});
  }
  std::partial_sort(found.begin(), found.begin() + k, found.end());
  found.resize(size_t(k));
  return found;
}

int32_t majority(const std::vector<Neighbour>& neighbours, const std::vector<int32_t>& labels) {
  std::map<int32_t, int64_t> votes;
  int64_t most = 0;
  for (const Neighbour& n : neighbours) most = std::max(most, ++votes[labels[size_t(n.row)]]);
  for (const Neighbour& n : neighbours)
    if (votes[labels[size_t(n.row)]] == most) return labels[size_t(n.row)];
  return -1;
}

}  // namespace

void require_neighbours(int64_t k, int64_t rows) {
  if (k > rows)
    throw Error(ErrorKind::usage, fmt::format("{} neighbours of {} labelled images", k, rows),
                "ask for more labels, or for another head", "knn");
}

std::vector<int32_t> nearest_neighbours(const Runtime& runtime, const FeatureMatrix& training,
                                        const std::vector<int32_t>& labels, const FeatureMatrix& queries,
                                        int64_t k, const LookupVariant* lookup) {
  VQ_REQUIRE(training.dims == queries.dims && int64_t(labels.size()) == training.rows,
             "knn: {} training rows of {} with {} labels, queries of {}", training.rows, training.dims,
             labels.size(), queries.dims);
  require_neighbours(k, training.rows);
  PieceSearch search(runtime, training, lookup);
  std::vector<int32_t> classes(size_t(queries.rows));
  for (int64_t first = 0; first < queries.rows; first += kQueryBatch) {
    const int64_t count = std::min(kQueryBatch, queries.rows - first);
    const std::vector<int64_t> nearest = search.nearest(queries.row(first), count);
    parallel_for(count, [&](int64_t q, int) {
      classes[size_t(first + q)] =
          majority(k_nearest(training, queries.row(first + q), nearest.data() + q * search.pieces(),
                             search.pieces(), k),
                   labels);
    });
  }
  return classes;
}

}  // namespace vqlab
