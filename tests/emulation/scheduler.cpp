// Threads as fibers: how they take turns, what lets them go on, and what is reported. Linked to every program.
#include "cuda_emulation.h"

#include <ucontext.h>

dim3 gridDim, blockDim, blockIdx, threadIdx;
alignas(1024) unsigned char dynamic_shared[emulation::DYNAMIC + emulation::MARGIN];

// Where the linker put the __shared__ variables of this program, if it has any.
extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));

namespace emulation {

std::vector<Fiber> fibers;
unsigned running;
char message[256];
std::vector<std::function<void()>> outstanding;

static unsigned active;
static jmp_buf scheduler;
static void (*body)(const void*);
static const void* body_params;

void fail(const char* what) {
    if (!message[0]) snprintf(message, sizeof message, "thread %u: %s", running, what);
}

void wait(State state, int line) {
    fibers[running].state = state;
    fibers[running].line = line;
    if (!_setjmp(fibers[running].point)) _longjmp(scheduler, 1);
}

void complete(Fiber& f, unsigned later) {
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

void agree_in_warpgroup(unsigned long long a, unsigned long long b) {
    auto& named = operands[running / (4 * WARP)];
    const size_t at = 2 * fibers[running].products_begun++;
    if (named.size() == at) named.insert(named.end(), {a, b});
    if (named[at] != a || named[at + 1] != b) fail("threads of a warpgroup name different operands of one product");
}

void complete_products(Fiber& f, unsigned later) {
    std::vector<Product> left;
    for (Product& product : f.products) {
        if (product.group + later >= f.product_groups) {
            left.push_back(std::move(product));
            continue;
        }
        product.compute();
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
        outstanding.back()();
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

const char* run(void (*kernel)(const void*), const unsigned* grid, const unsigned* block, size_t shared, const void* params) {
    message[0] = 0;
    if (shared > DYNAMIC) {
        snprintf(message, sizeof message, "the host asks for %zu bytes of shared memory, no device has more than %zu", shared, DYNAMIC);
        return message;
    }
    dynamic_bytes = shared;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    active = block[0] * block[1] * block[2];
    if (fibers.size() < active) fibers = std::vector<Fiber>(active);
    body = kernel;
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
