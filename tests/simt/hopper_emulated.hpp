// The functions of kernels/core/hopper.cuh on the emulated device.
#pragma once

#include <cstring>

#include "engines.hpp"
#include "ptx_emulated.hpp"

namespace vqlab {

// What make_tensor_map puts into a TensorMap here.
struct EmulatedTensorMap {
  const unsigned char* data;
  int64_t rows, columns;
  int box_rows;
};
inline EmulatedTensorMap unpack(const TensorMap& map) {
  EmulatedTensorMap unpacked;
  std::memcpy(&unpacked, map.opaque, sizeof unpacked);
  return unpacked;
}
void visit_pointers(const TensorMap& map, auto&& visitor) { visitor(unpack(map).data); }

}  // namespace vqlab

namespace vqlab::hopper {

inline void init_barrier(MBarrier* barrier, uint32_t arrivals, SIMT_PLACE) {
  simt::init_mbarrier(barrier, arrivals, place);
}
inline void fence_barrier_init() { simt::show_mbarriers(); }
inline void arrive(MBarrier* barrier, SIMT_PLACE) { simt::arrive(barrier, 0, place); }
inline void arrive_and_expect(MBarrier* barrier, uint32_t bytes, SIMT_PLACE) {
  simt::arrive(barrier, bytes, place);
}
inline void wait(MBarrier* barrier, uint32_t parity, SIMT_PLACE) {
  simt::wait_for_phase(barrier, parity, place);
}

inline void load_tile_async(void* tile, const TensorMap& map, MBarrier* barrier, int row, int column,
                            SIMT_PLACE) {
  const EmulatedTensorMap matrix = unpack(map);
  simt::start_box_copy({.tile = static_cast<unsigned char*>(tile),
                        .barrier = barrier,
                        .matrix = matrix.data,
                        .rows = matrix.rows,
                        .columns = matrix.columns,
                        .row = row,
                        .column = column,
                        .box_rows = matrix.box_rows,
                        .box_columns = kBoxColumns},
                       place);
}

struct Operand {
  const unsigned char* begin;
};
inline Operand operand(const void* tile, SIMT_PLACE) {
  simt::check_operand(tile, place);
  return {static_cast<const unsigned char*>(tile)};
}
inline Operand advance(Operand operand, int bytes) { return {operand.begin + bytes}; }

using Accumulators = float[64];
inline void fence_products(Accumulators&, SIMT_PLACE) { simt::fence_products(place); }
inline void multiply_async(Accumulators& d, Operand a, Operand b, bool accumulate, SIMT_PLACE) {
  simt::start_product(d, a.begin, b.begin, accumulate, place);
}
inline void products_commit(SIMT_PLACE) { simt::commit_products(place); }
template <int kPending>
void products_wait(Accumulators&, SIMT_PLACE) {
  simt::wait_for_products(kPending, place);
}
inline void fence_async_proxy() { simt::race::proxy_fence(); }

template <int kRegisters>
void release_registers(SIMT_PLACE) {
  simt::change_registers(place);
}
template <int kRegisters>
void take_registers(SIMT_PLACE) {
  simt::change_registers(place);
}

}  // namespace vqlab::hopper
