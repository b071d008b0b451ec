// What the emulator tells its race checker: accesses that the compiler does not instrument, and what puts
// accesses in order. Only the race build has a checker (race.cpp); everywhere else these calls vanish.
#pragma once

#include <cstddef>
#include <span>

#include "simt.hpp"

namespace simt {
struct Block;
struct Thread;
}  // namespace simt

namespace simt::race {

enum class Kind { read, write, atomic };

// What is known of the bytes of the emulated device.
enum class Bytes { nobodys, undefined, defined };

#if defined(SIMT_RACE)
inline constexpr bool kEnabled = true;

// The current thread accesses memory in an emulated instruction.
void touch(const void* address, size_t bytes, Kind kind, Place at);

void start_launch();
void start_block(Block& block);
void end_block(Block& block);
// These threads of a block have waited for each other.
void met(std::span<Thread* const> threads);
void fence();  // __threadfence(): what the thread knows of can be published by an atomic

// Memory that the checker knows of lies in its arena; null if that is full.
void* map_memory(size_t bytes);
void unmap_memory(void* memory, size_t bytes);
void mark(const void* address, size_t bytes, Bytes what, bool shared = false);
void forget_operations();

#else
inline constexpr bool kEnabled = false;

inline void touch(const void*, size_t, Kind, Place) {}
inline void start_launch() {}
inline void start_block(Block&) {}
inline void end_block(Block&) {}
inline void met(std::span<Thread* const>) {}
inline void fence() {}
inline void* map_memory(size_t) { return nullptr; }
inline void unmap_memory(void*, size_t) {}
inline void mark(const void*, size_t, Bytes, bool = false) {}
inline void forget_operations() {}
#endif

}  // namespace simt::race
