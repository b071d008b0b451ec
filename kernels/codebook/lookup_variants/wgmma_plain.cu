// Scores s_k = x.c_k - |c_k|^2 / 2 from fp16 products of warpgroups (wgmma), rounded as lookup_halves.cuh
// says, with the argmax in the epilogue. Rows whose best two scores are too close for that are decided by
// score64 (lookup_recheck.cu). Ties: the lowest code. Plain: the tensor cores wait while their own warpgroup
// compares scores, which is what flash-kmeans' Hopper kernel does (branch fa3); a baseline for variants that
// overlap the two. Mapping: a block owns 128 rows, which the TMA loads once, and passes over the codes, 128
// at a time, in slabs of 64 dimensions through a ring of 4 stages; one thread of warpgroup 0 asks for them,
// warpgroups 1 and 2 multiply 64 rows each. Traffic: N * D floats of latents read and as many halves written
// and read again; K * D halves of codebook per block, from L2. Shared memory: 65 KB and 16 KB for each 64
// dimensions. Needs: sm_90a; D up to 512. Measured: not yet run on a GPU.
#include "../../core/hopper.cuh"
#include "../lookup_halves.cuh"

namespace vqlab {
namespace {

using hopper::MBarrier;

constexpr int kGroup = 128, kBlock = 3 * kGroup, kConsumers = 2;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(hopper::registers_fit(kBlock, {kProducerRegisters}, {kConsumerRegisters, kConsumerRegisters}));
constexpr int kBlockN = 64 * kConsumers, kBlockK = 128, kStages = 4;
constexpr int kSlab = kBoxColumns;  // dimensions of a stage
constexpr int kRowSlabBytes = kBlockN * kSlab * 2, kStageBytes = kBlockK * kSlab * 2;

int64_t shared_bytes(int64_t D) {
  return (D + kSlab - 1) / kSlab * kRowSlabBytes + kStages * kStageBytes +
         (2 * kStages + 1) * int64_t(sizeof(MBarrier));
}

constexpr int kStep = 16;  // dimensions of a product

#if defined(VQ_HOPPER)

// The shared memory of a block.
struct Shared {
  unsigned char *rows, *stages;  // [slabs][kBlockN][kSlab], [kStages][kBlockK][kSlab], halves
  MBarrier *full, *empty;        // [kStages]
  MBarrier* rows_full;
};

// Follows the ring of stages: which is next, and the parity of its phase.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// By one thread.
__device__ inline void produce(const Shared& shared, const TensorMap& latents, const TensorMap& codes,
                               int64_t first_row, int K, int slabs) {
  hopper::arrive_and_expect(shared.rows_full, uint32_t(slabs * kRowSlabBytes));
  for (int i = 0; i < slabs; ++i)
    hopper::load_tile_async(shared.rows + i * kRowSlabBytes, latents, shared.rows_full, int(first_row),
                            i * kSlab);
  Ring ring;
  for (int first_code = 0; first_code < K; first_code += kBlockK)
    for (int i = 0; i < slabs; ++i, ring.advance()) {
      hopper::wait(&shared.empty[ring.stage], ring.parity ^ 1);
      hopper::arrive_and_expect(&shared.full[ring.stage], kStageBytes);
      hopper::load_tile_async(shared.stages + ring.stage * kStageBytes, codes, &shared.full[ring.stage],
                              first_code, i * kSlab);
    }
}

// By a warpgroup; `rows` is its part of the first slab, kLastSteps the products of the last. The best scores
// of the thread's two rows, 8 apart.
template <int kLastSteps>
__device__ inline void consume(TopTwo (&top)[2], const float (&unscale)[2], const Shared& shared,
                               const unsigned char* rows, const float* half_norms, int K, int half_D) {
  const int lane = int(threadIdx.x % 32);
  hopper::wait(shared.rows_full, 0);
  Ring ring;
  for (int first_code = 0; first_code < K; first_code += kBlockK) {
    hopper::Accumulators scores;
    const auto pass_slab = [&](int d, auto steps) {
      hopper::wait(&shared.full[ring.stage], ring.parity);
      const hopper::Operand a = hopper::operand(rows + d / kSlab * kRowSlabBytes);
      const hopper::Operand b = hopper::operand(shared.stages + ring.stage * kStageBytes);
      hopper::fence_products(scores);
#pragma unroll
      for (int i = 0; i < decltype(steps)::value; ++i)
        hopper::multiply_async(scores, hopper::advance(a, 2 * kStep * i), hopper::advance(b, 2 * kStep * i),
                               d + i > 0);
      hopper::products_commit();
      hopper::products_wait<0>(scores);
      if (lane == 0) hopper::arrive(&shared.empty[ring.stage]);
      ring.advance();
    };
    int d = 0;
    for (; d + kSlab < half_D; d += kSlab) pass_slab(d, std::integral_constant<int, kSlab / kStep>{});
    pass_slab(d, std::integral_constant<int, kLastSteps>{});
#pragma unroll
    for (int i = 0; i < kBlockK / 8; ++i) {
      const int code = first_code + 8 * i + lane % 4 * 2;
      const float2 start = *reinterpret_cast<const float2*>(half_norms + code);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[h].add(fmaf(scores[4 * i + 2 * h], unscale[h], start.x), code);
        top[h].add(fmaf(scores[4 * i + 2 * h + 1], unscale[h], start.y), code + 1);
      }
    }
  }
}

#endif

template <int kLastSteps>
__global__ void __launch_bounds__(kBlock, 1)
    lookup_wgmma_plain_kernel(int32_t* codes /*(N)*/, unsigned* first_bad_row /*(1)*/,
                              unsigned* doubtful_count /*(1)*/, Doubtful* doubtful /*(N)*/,
                              const __grid_constant__ TensorMap half_latents /*(N, half_D)*/,
                              const __grid_constant__ TensorMap half_codes /*(K, half_D)*/,
                              const HalfRow* rows /*(N)*/, const float* latents /*(N, D)*/,
                              const float* half_norms /*(packed_K)*/,
                              const float* pack_norms /*(norm_blocks)*/,
                              const float* loss_norms /*(norm_blocks)*/, int64_t N, int K, int D, int half_D,
                              int64_t norm_blocks) {
#if defined(VQ_HOPPER)
  VQ_DYN_SHARED(1024, memory);
  const int group = int(threadIdx.x / kGroup), lane = int(threadIdx.x % 32),
            slabs = (half_D + kSlab - 1) / kSlab;
  const int64_t first_row = int64_t(blockIdx.x) * kBlockN;
  Shared shared;
  shared.rows = memory;
  shared.stages = shared.rows + slabs * kRowSlabBytes;
  shared.full = reinterpret_cast<MBarrier*>(shared.stages + kStages * kStageBytes);
  shared.empty = shared.full + kStages;
  shared.rows_full = shared.empty + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      hopper::init_barrier(&shared.full[i], 1);
      hopper::init_barrier(&shared.empty[i], kConsumers * kGroup / 32);  // a lane of each warp arrives
    }
    hopper::init_barrier(shared.rows_full, 1);
    hopper::fence_barrier_init();
  }
  __syncthreads();  // the barriers are there before anybody uses them

  if (group == 0) {
    hopper::release_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(shared, half_latents, half_codes, first_row, K, slabs);
    return;
  }
  hopper::take_registers<kConsumerRegisters>();
  const int64_t row = first_row + (group - 1) * 64 + threadIdx.x % kGroup / 32 * 16 + lane / 4;
  HalfRow own[2];
  TopTwo top[2];
  float unscale[2];
  for (int h = 0; h < 2; ++h) {  // behind the end, row N - 1 again
    own[h] = rows[min(row + 8 * h, N - 1)];
    unscale[h] = own[h].unscale;
    top[h] = TopTwo::none();
  }
  consume<kLastSteps>(top, unscale, shared, shared.rows + (group - 1) * 64 * kSlab * 2, half_norms, K,
                      half_D);
  const ErrorBound bound = error_bound(warp_largest(pack_norms, norm_blocks), D);
  const float loss_norm = warp_largest(loss_norms, norm_blocks);
  for (int h = 0; h < 2; ++h) {
    top[h].merge_lanes(1);
    top[h].merge_lanes(2);
    settle_row({codes, first_bad_row, doubtful_count, doubtful}, lane % 4 == 0 && row + 8 * h < N,
               int32_t(row + 8 * h), top[h], own[h].square, latents + (row + 8 * h) * D, D, bound,
               half_error(own[h], loss_norm, D, bound));
  }
#else
  __trap();
#endif
}

void run_wgmma_plain(const LookupOp& op, Stream stream) {
  const int64_t N = op.latents[0], K = op.codebook[0], D = op.codebook[1], half_D = half_dims(D);
  const LookupWork work = prepare_lookup(op, stream);
  const HalfCodes codes = half_codes(work.rest.data, K, D);
  const HalfLatents rows = half_latents(work.rest.data + half_codes_bytes(K, D), N, D);
  pack_half_codes(op, work, codes, stream);
  pack_half_latents(op, work, rows, stream);
  static constexpr decltype(&lookup_wgmma_plain_kernel<1>) kKernels[] = {
      lookup_wgmma_plain_kernel<1>, lookup_wgmma_plain_kernel<2>, lookup_wgmma_plain_kernel<3>,
      lookup_wgmma_plain_kernel<4>};
  launch("lookup_wgmma_plain", kKernels[(half_D - 1) % kSlab / kStep],
         {unsigned((N + kBlockN - 1) / kBlockN), unsigned(kBlock), size_t(shared_bytes(D))}, stream,
         op.codes.data, reinterpret_cast<unsigned*>(op.first_bad_row.data), work.doubtful_count,
         work.doubtful, make_tensor_map(rows.latents, N, half_D, kBlockN),
         make_tensor_map(codes.codes, K, half_D, kBlockK), rows.rows, op.latents.data, work.half_norms,
         work.pack_norms, codes.loss_norms, N, int(K), int(D), int(half_D), work.norm_blocks());
  recheck_lookup(op, work, stream);
}

}  // namespace

extern const LookupVariant lookup_wgmma_plain;
const LookupVariant lookup_wgmma_plain = {
    .name = "wgmma_plain",
    .device = Device::cuda,
    .idea = "fp16 scores by TMA and wgmma, the argmax behind each tile; score64 where two are too close",
    .exact = true,
    .supports = [](int64_t, int64_t K,
                   int64_t D) { return K <= int64_t(1) << 30 && D <= 512 && hopper::available(); },
    .scratch_bytes =
        [](int64_t N, int64_t K, int64_t D) {
          return lookup_work_bytes(N, K, D, half_codes_bytes(K, D) + half_latents_bytes(N, D));
        },
    .run = run_wgmma_plain,
};

}  // namespace vqlab
