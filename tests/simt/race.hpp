// What the emulator tells its race checker: accesses that the compiler does not instrument, and what puts
// accesses in order. Only the race build has a checker (race.cpp); everywhere else these calls vanish.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

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

// What the issuing thread has done and knows, for the engine that works for it.
using Snapshot = std::shared_ptr<void>;

#if defined(SIMT_RACE)

// The current thread, or the engine that acts for it, accesses memory in an emulated instruction.
void touch(const void* address, size_t bytes, Kind kind, Place at);

void start_thread(Thread& thread);
void end_block(Block& block);
void full_barrier(Block& block);  // all threads of the block have met
// What a thread did before release(x) is before what another does after acquire(x); x is any address of the
// block: a named barrier, a mask of a warp, an mbarrier.
void release(const void* object);
void acquire(const void* object);
void fence();        // __threadfence()
void proxy_fence();  // fence.proxy.async: earlier stores of this thread are visible to engines

Snapshot snapshot();
void run_as_engine(const Snapshot& issuer, Block& block, unsigned engine, const std::function<void()>& work);
void join_engine(unsigned engine);  // the current thread knows that the engine's work up to now is done

#else

inline void touch(const void*, size_t, Kind, Place) {}
inline void start_thread(Thread&) {}
inline void end_block(Block&) {}
inline void full_barrier(Block&) {}
inline void release(const void*) {}
inline void acquire(const void*) {}
inline void fence() {}
inline void proxy_fence() {}
inline Snapshot snapshot() { return {}; }
inline void run_as_engine(const Snapshot&, Block&, unsigned, const std::function<void()>& work) { work(); }
inline void join_engine(unsigned) {}

#endif

}  // namespace simt::race
