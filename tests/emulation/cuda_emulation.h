// Enough of CUDA C++ to run a kernel on the CPU: what a kernel may use, and a launcher that runs it block by block.
//
// The threads of a block are fibers. Each runs until it meets a barrier, or waits for what another thread or a copy does;
// the scheduler opens a barrier once all threads that it is for have arrived, and reports what can never open. Between
// two barriers threads run in turn, forwards and backwards alternately, so that a missing barrier shows as a wrong
// result; shared memory starts out filled with NaN bit patterns. The scheduler is scheduler.cpp, compiled once for all
// programs.
#pragma once

#include <setjmp.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static __attribute__((section("emulated_shared")))
#define __grid_constant__
#define __launch_bounds__(...)
#define __syncthreads() emulation::wait(emulation::AT_BLOCK, __LINE__)
#define __syncwarp() emulation::wait(emulation::AT_WARP, __LINE__)
#define __shfl_sync(mask, value, from) emulation::exchange(mask, value, from, __LINE__)
#define __shfl_xor_sync(mask, value, with) emulation::exchange(mask, value, emulation::lane() ^ (with), __LINE__)
#define __shfl_down_sync(mask, value, by) emulation::exchange(mask, value, emulation::lane() + (by), __LINE__)

using std::erfc;
using std::exp;
using std::pow;
using std::sqrt;
using std::tanh;

struct dim3 {
    unsigned x, y, z;
};

extern dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

enum State { READY, AT_WARP, AT_BLOCK, WAITING, DONE };

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 << 10;

// Dynamic shared memory: what the host asked for, and a margin that must not change.
constexpr size_t DYNAMIC = 228 << 10, MARGIN = 1 << 10;

// An asynchronous copy that is under way.
struct Copy {
    void* to;
    unsigned size, group;
    char bytes[16];
};

// Sums that products are under way to: their values so far, and how many products there are. `target` holds NaN.
struct Sums {
    void* target;
    std::vector<char> bytes;
    unsigned pending;
};

// A product of a warpgroup that is under way.
struct Product {
    Sums* sums;
    unsigned group;
    std::function<void()> compute;
};

// A fiber gets its stack by makecontext; from then on it is switched to and from by setjmp and longjmp, which unlike
// swapcontext make no system call. It lives on from block to block.
struct Fiber {
    bool started = false;
    jmp_buf point;
    std::unique_ptr<char[]> stack{new char[STACK]};  // not zeroed: pages that no call reaches take no memory
    dim3 index;
    State state;
    int line;
    alignas(16) char slot[24];  // what it offers to its warp
    std::vector<Copy> copies;   // begun and not yet waited for
    unsigned groups;            // of copies, committed so far
    bool (*holds)(void*);       // what it waits for: a condition, which lies on its stack
    void* condition;
    std::vector<std::unique_ptr<Sums>> sums;
    std::vector<Product> products;  // begun and not yet waited for
    unsigned product_groups;        // committed so far
    size_t products_begun;
    bool products_may_begin;
};

extern std::vector<Fiber> fibers;
extern unsigned running;
extern char message[256];

// Make `what` the outcome of the launch, unless something went wrong before.
void fail(const char* what);

// Let the running thread wait in that state.
void wait(State state, int line);

static unsigned lane() { return running % WARP; }

// Go on once `condition` holds.
template <class Condition>
static void wait_until(Condition condition, int line) {
    if (condition()) return;
    fibers[running].holds = [](void* p) { return (*static_cast<Condition*>(p))(); };
    fibers[running].condition = &condition;
    wait(WAITING, line);
}

// What the hardware will do once no thread can go on without it.
extern std::vector<std::function<void()>> outstanding;

template <class T>
static T exchange(unsigned mask, T value, unsigned from, int line) {
    static_assert(sizeof(T) <= 8, "CUDA shuffles at most 8 bytes");
    const unsigned first = running / WARP * WARP;
    if (mask != 0xffffffff) snprintf(message, sizeof message, "line %d: shuffle with mask %x, expected all", line, mask);
    memcpy(fibers[running].slot, &value, sizeof(T));
    wait(AT_WARP, line);
    if (from < WARP) memcpy(&value, fibers[first + from].slot, sizeof(T));
    wait(AT_WARP, line);
    return value;
}

// Let all copies arrive that are not in the last `later` groups.
void complete(Fiber& f, unsigned later);

// Hold the threads of a warpgroup to the operands that the first of them named.
void agree_in_warpgroup(unsigned long long a, unsigned long long b);

// Let all products be done that are not in the last `later` groups.
void complete_products(Fiber& f, unsigned later);

// Run `body` as every thread of a grid; null, or what went wrong.
const char* run(void (*body)(const void*), const unsigned* grid, const unsigned* block, size_t shared, const void* params);

// Run a kernel whose only parameter is a struct; null, or what went wrong.
template <class Params>
static const char* launch(void (*kernel)(Params), const unsigned* grid, const unsigned* block, size_t shared,
                          const void* params, size_t size) {
    static void (*entry)(Params);
    entry = kernel;
    if (size != sizeof(Params)) {
        snprintf(message, sizeof message, "the host sends %zu bytes of parameters, the kernel takes %zu", size, sizeof(Params));
        return message;
    }
    return run([](const void* p) { entry(*static_cast<const Params*>(p)); }, grid, block, shared, params);
}

}  // namespace emulation

alignas(1024) extern unsigned char dynamic_shared[emulation::DYNAMIC + emulation::MARGIN];

// -- IEEE half precision, by bit arithmetic --------------------------------------------------------------------------

static inline float float_of(unsigned int bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline unsigned int bits_of(float v) {
    unsigned int bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline float widen_half(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp((float)fraction, -24);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static inline unsigned short narrow_half(float v) {
    const unsigned sign = bits_of(v) >> 16 & 0x8000;
    const float size = std::fabs(v);
    if (v != v) return sign | 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;  // halfway from the largest half to what would be the next
    // Neighbouring halves are 2^(e - 11) apart for size = f * 2^e with f < 1, and 2^-24 below the normal numbers.
    int ulp = -24;
    if (size >= 0x1p-14f) {
        std::frexp(size, &ulp);
        ulp -= 11;
    }
    const unsigned units = (unsigned)std::nearbyint(std::ldexp(size, -ulp));  // ties to even
    // A subnormal is its units; a normal number has 1024..2047 of them, and a carry to 2048 moves on by itself.
    return (unsigned short)(sign | (((unsigned)(ulp + 24) << 10) + units));
}
