// What the race checker knows of memory, and the arena that this memory lies in.
#pragma once

#include <cstdint>
#include <string>

#include "race.hpp"

namespace simt::race {

// Bytes that are checked as one. So two threads that write neighbouring single bytes are reported.
inline constexpr size_t kGranule = 2;

// What is known of a granule for ever, a byte each.
enum Flag : uint8_t { kAddressable = 1, kDefined = 2, kAtomic = 4, kShared = 8 };

// Who has used a granule last in this launch. Times are clocks of the thread `index` of the block with
// this serial number; those of earlier launches mean nobody.
struct Cell {
  uint32_t writer_serial, writer_time, writer_where;
  uint32_t reader_serial, reader_time,
      reader_where;  // several readers: reader_time is the number of their list
  uint16_t writer_index, reader_index;
};
inline constexpr uint16_t kSeveral = 0xFFFF;  // a reader_index

// Where the arena lies and what is known of it. In plain sight: every access of a kernel comes here.
inline constexpr size_t kArenaBytes = size_t(4) << 30;  // of addresses; pages come with their first use
struct Order8;
struct Shadow {
  uintptr_t begin;
  uint8_t* flags;  // by granule
  Cell* cells;
  Order8* order;  // by 8 bytes
};
extern Shadow shadow;

inline bool in_arena(const void* address) {
  return reinterpret_cast<uintptr_t>(address) - shadow.begin < kArenaBytes;
}
inline size_t granule_of(const void* address) {  // of an address in the arena
  return (reinterpret_cast<uintptr_t>(address) - shadow.begin) / kGranule;
}
inline Cell& cell_of(size_t granule) { return shadow.cells[granule]; }
inline uint8_t& flags_of(size_t granule) { return shadow.flags[granule]; }

// A place in the sources as a number: of the code after a call, or of touch().
uint32_t id_of(uintptr_t return_address);
uint32_t id_of(Place place);
// "file:line", and after " < " what that is inlined into.
std::string place_of(uint32_t id);

// What a compiled or emulated instruction does. Reports what is wrong and goes on, or, in a thread of a
// kernel, does not return.
void access(const void* address, size_t bytes, Kind kind, uint32_t where);

// ---- operations of streams, exact to 8 bytes ----
// By the kernel that runs; "" or what is wrong.
std::string order_device_access(const void* address, size_t bytes, Kind kind);
void order_host_access(const void* address, size_t bytes, Kind kind, uint32_t where);

}  // namespace simt::race
