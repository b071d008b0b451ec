// What the emulator tells its race checker: accesses that the compiler does not instrument, and what puts
// accesses in order. Only the race build has a checker (race.cpp); everywhere else these calls vanish.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "simt.hpp"

namespace simt {
struct Block;
struct Thread;
}  // namespace simt

namespace simt::race {

enum class Kind { read, write, atomic };

// A pseudo-thread of a block that works beside its threads: the copy engine, or the tensor core of a
// warpgroup.
inline constexpr unsigned kCopyEngine = 0;
inline constexpr unsigned kFirstTensorCore = 1;  // that of warpgroup g is kFirstTensorCore + g

// What the thread that issues work for an engine has done and knows.
using Snapshot = std::shared_ptr<const void>;

// What is known of the bytes of the emulated device.
enum class Bytes { nobodys, undefined, defined };

#if defined(SIMT_RACE)
inline constexpr bool kEnabled = true;

// The current thread, or the engine that acts for it, accesses memory in an emulated instruction.
void touch(const void* address, size_t bytes, Kind kind, Place at);

void start_launch();
void start_block(Block& block);
void end_block(Block& block);
// These threads of a block have waited for each other.
void met(std::span<Thread* const> threads);
// What was done before release(x) is before what follows acquire(x). x is any address; the block forgets it
// at its end.
void release(Block& block, const void* object);
void acquire(const void* object);
void fence();        // __threadfence(): what the thread knows of can be published by an atomic
void proxy_fence();  // fence.proxy.async: what the thread has stored can be read by engines

Snapshot snapshot();
// Runs work() as what the engine does. What goes wrong in it ends the grid at the next switch.
void run_as_engine(const Snapshot& issuer, Block& block, unsigned engine, const std::function<void()>& work);
void join_engine(unsigned engine);  // the current thread has waited for all that the engine has done

// Memory that the checker knows of lies in its arena; null if that is full.
void* map_memory(size_t bytes);
void unmap_memory(void* memory, size_t bytes);
void mark(const void* address, size_t bytes, Bytes what, bool shared = false);
void undefine(const void* address, size_t bytes);  // until the next write, with its history
void forget_operations();

#else
inline constexpr bool kEnabled = false;

inline void touch(const void*, size_t, Kind, Place) {}
inline void start_launch() {}
inline void start_block(Block&) {}
inline void end_block(Block&) {}
inline void met(std::span<Thread* const>) {}
inline void release(Block&, const void*) {}
inline void acquire(const void*) {}
inline void fence() {}
inline void proxy_fence() {}
inline Snapshot snapshot() { return {}; }
inline void run_as_engine(const Snapshot&, Block&, unsigned, const std::function<void()>& work) { work(); }
inline void join_engine(unsigned) {}
inline void* map_memory(size_t) { return nullptr; }
inline void unmap_memory(void*, size_t) {}
inline void mark(const void*, size_t, Bytes, bool = false) {}
inline void undefine(const void*, size_t) {}
inline void forget_operations() {}
#endif

}  // namespace simt::race
