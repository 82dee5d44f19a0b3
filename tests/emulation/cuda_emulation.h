// Enough of CUDA C++ to run a kernel on the CPU: what a kernel may use, and a launcher that runs it block by block.
//
// The threads of a block are fibers. Each runs until it meets a barrier, or waits for what another thread or a copy does;
// the scheduler opens a barrier once all threads that it is for have arrived, and reports what can never open. Between
// two barriers threads run in turn, forwards and backwards alternately, so that a missing barrier shows as a wrong
// result; shared memory starts out filled with NaN bit patterns.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstring>
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

static dim3 gridDim, blockDim, blockIdx, threadIdx;

// Where the linker put the __shared__ variables of this program, if it has any.
extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));

namespace emulation {

enum State { READY, AT_WARP, AT_BLOCK, WAITING, DONE };

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 << 10;

// An asynchronous copy that is under way.
struct Copy {
    void* to;
    unsigned size, group;
    char bytes[16];
};

// What will happen; without <functional>, which would take as long to compile as all the rest.
struct Event {
    virtual ~Event() = default;
    virtual void happen() = 0;
};

template <class F>
struct EventOf : Event {
    F f;
    explicit EventOf(F f) : f(f) {}
    void happen() override { f(); }
};

template <class F>
static std::unique_ptr<Event> event(F f) {
    return std::unique_ptr<Event>(new EventOf<F>(f));
}

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
    std::unique_ptr<Event> compute;
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

static std::vector<Fiber> fibers;
static unsigned active, running;
static jmp_buf scheduler;
static void (*body)(const void*);
static const void* body_params;
static char message[256];

static void fail(const char* what) {
    if (!message[0]) snprintf(message, sizeof message, "thread %u: %s", running, what);
}

static unsigned lane() { return running % WARP; }

static void wait(State state, int line) {
    fibers[running].state = state;
    fibers[running].line = line;
    if (!_setjmp(fibers[running].point)) _longjmp(scheduler, 1);
}

// Go on once `condition` holds.
template <class Condition>
static void wait_until(Condition condition, int line) {
    if (condition()) return;
    fibers[running].holds = [](void* p) { return (*static_cast<Condition*>(p))(); };
    fibers[running].condition = &condition;
    wait(WAITING, line);
}

// What the hardware will do once no thread can go on without it.
static std::vector<std::unique_ptr<Event>> outstanding;

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
static void complete(Fiber& f, unsigned later) {
    std::vector<Copy> left;
    for (const Copy& copy : f.copies) {
        if (copy.group + later < f.groups)
            memcpy(copy.to, copy.bytes, copy.size);
        else
            left.push_back(copy);
    }
    f.copies.swap(left);
}

// The operands of the products of each warpgroup, as the first of its threads that came there named them.
static std::vector<std::vector<unsigned long long>> operands;

static void agree_in_warpgroup(unsigned long long a, unsigned long long b) {
    auto& named = operands[running / (4 * WARP)];
    const size_t at = 2 * fibers[running].products_begun++;
    if (named.size() == at) named.insert(named.end(), {a, b});
    if (named[at] != a || named[at + 1] != b) fail("threads of a warpgroup name different operands of one product");
}

// Let all products be done that are not in the last `later` groups.
static void complete_products(Fiber& f, unsigned later) {
    std::vector<Product> left;
    for (Product& product : f.products) {
        if (product.group + later >= f.product_groups) {
            left.push_back(std::move(product));
            continue;
        }
        product.compute->happen();
        if (!--product.sums->pending) memcpy(product.sums->target, product.sums->bytes.data(), product.sums->bytes.size());
    }
    f.products.swap(left);
    std::vector<std::unique_ptr<Sums>> sums;
    for (auto& known : f.sums)
        if (known->pending) sums.push_back(std::move(known));
    f.sums.swap(sums);
    f.products_may_begin = false;
}

static void enter() {
    for (;;) {
        body(body_params);
        wait(DONE, 0);
    }
}

// Run the current fiber until it waits.
static void resume() {
    Fiber& f = fibers[running];
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.point, 1);
    f.started = true;
    static ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = f.stack.get();
    start.uc_stack.ss_size = STACK;
    makecontext(&start, enter, 0);
    setcontext(&start);
}

// Let threads [first, last) go on if all of them wait at the same barrier.
static bool open(unsigned first, unsigned last, State barrier) {
    for (unsigned i = first; i < last; ++i)
        if (fibers[i].state != barrier || fibers[i].line != fibers[first].line) return false;
    for (unsigned i = first; i < last; ++i) fibers[i].state = READY;
    return true;
}

// Let threads go on that have what they waited for.
static bool wake() {
    bool any = false;
    for (unsigned i = 0; i < active; ++i)
        if (fibers[i].state == WAITING && fibers[i].holds(fibers[i].condition)) {
            fibers[i].state = READY;
            any = true;
        }
    return any;
}

// Let the youngest of what is outstanding happen, and older ones, until a thread can go on.
static bool advance() {
    while (!outstanding.empty()) {
        outstanding.back()->happen();
        outstanding.pop_back();
        if (wake()) return true;
    }
    return false;
}

static bool all_done() {
    for (unsigned i = 0; i < active; ++i)
        if (fibers[i].state != DONE) return false;
    return true;
}

static void describe_deadlock() {
    static const char* names[] = {"ready", "at a warp barrier", "at a block barrier", "waiting for a phase", "finished"};
    unsigned other = 1;
    while (other < active - 1 && fibers[other].state == fibers[0].state && fibers[other].line == fibers[0].line) ++other;
    snprintf(message, sizeof message, "divergent barrier in block (%u, %u, %u): thread 0 is %s (line %d), thread %u is %s (line %d)",
             blockIdx.x, blockIdx.y, blockIdx.z, names[fibers[0].state], fibers[0].line, other,
             names[fibers[other].state], fibers[other].line);
}

// Dynamic shared memory: what the host asked for, and a margin that must not change.
constexpr size_t DYNAMIC = 228 << 10, MARGIN = 1 << 10;

}  // namespace emulation

alignas(1024) static unsigned char dynamic_shared[emulation::DYNAMIC + emulation::MARGIN];

namespace emulation {

static size_t dynamic_bytes;

static bool margin_kept() {
    for (size_t i = 0; i < MARGIN; ++i)
        if (dynamic_shared[dynamic_bytes + i] != 0x5a) return false;
    return true;
}

static bool run_block() {
    outstanding.clear();
    operands.assign((active + 4 * WARP - 1) / (4 * WARP), {});
    memset(dynamic_shared, 0xff, dynamic_bytes);
    memset(dynamic_shared + dynamic_bytes, 0x5a, MARGIN);
    if (__start_emulated_shared) memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
    for (unsigned i = 0; i < active; ++i) {
        Fiber& f = fibers[i];
        f.state = READY;
        f.line = 0;
        f.copies.clear();
        f.groups = 0;
        f.sums.clear();
        f.products.clear();
        f.product_groups = f.products_begun = 0;
        f.products_may_begin = false;
        f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    for (bool backwards = false; !all_done(); backwards = !backwards) {
        for (unsigned turn = 0; turn < active; ++turn) {
            running = backwards ? active - 1 - turn : turn;
            if (fibers[running].state != READY) continue;
            threadIdx = fibers[running].index;
            resume();
            if (message[0]) return false;
        }
        bool progress = all_done() || open(0, active, AT_BLOCK) || wake();
        for (unsigned warp = 0; warp < active; warp += WARP)
            progress |= open(warp, warp + WARP < active ? warp + WARP : active, AT_WARP);
        if (!progress && !advance()) {
            describe_deadlock();
            return false;
        }
    }
    if (!margin_kept()) fail("wrote beyond the dynamic shared memory that the host asked for");
    for (running = 0; running < active; ++running) {
        if (!fibers[running].copies.empty()) fail("ended before its asynchronous copies did");
        if (!fibers[running].products.empty()) fail("ended before its products did");
    }
    if (!outstanding.empty()) fail("ended before a copy arrived");
    return !message[0];
}

// Run a kernel whose only parameter is a struct; null, or what went wrong.
template <class Params>
static const char* launch(void (*kernel)(Params), const unsigned* grid, const unsigned* block, size_t shared,
                          const void* params, size_t size) {
    static void (*entry)(Params);
    entry = kernel;
    message[0] = 0;
    if (size != sizeof(Params)) {
        snprintf(message, sizeof message, "the host sends %zu bytes of parameters, the kernel takes %zu", size, sizeof(Params));
        return message;
    }
    if (shared > DYNAMIC) {
        snprintf(message, sizeof message, "the host asks for %zu bytes of shared memory, no device has more than %zu", shared, DYNAMIC);
        return message;
    }
    dynamic_bytes = shared;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    active = block[0] * block[1] * block[2];
    if (fibers.size() < active) fibers = std::vector<Fiber>(active);
    body = [](const void* p) { entry(*static_cast<const Params*>(p)); };
    body_params = params;
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                if (!run_block()) {
                    fibers.clear();  // they hang somewhere inside the kernel
                    return message;
                }
    return nullptr;
}

}  // namespace emulation

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
