// What Hopper adds: barriers that count bytes, the copy engine and products of a warpgroup; the twins of the PTX in
// cuda/barriers.cuh, cuda/tma.cuh and cuda/wgmma.cuh.
//
// Whatever is asynchronous happens as late as it may: a copy arrives when no thread can go on without it, the last one
// first, and a product reads its operands when it is waited for. Until then the target holds NaN.
#pragma once

// -- barriers: expected arrivals, those still missing, bytes announced and not yet there, and the phase's parity -------

namespace emulation {

struct Phase {
    unsigned short expected, missing;
    int bytes : 31;
    unsigned parity : 1;
};
static_assert(sizeof(Phase) == 8, "a barrier is 8 bytes");

static Phase& phase_of(unsigned long long& barrier) {
    Phase& phase = reinterpret_cast<Phase&>(barrier);
    if (phase.expected == 0xffff) fail("a barrier is used that nobody made");
    return phase;
}

static void end_if_complete(Phase& phase) {
    if (phase.missing || phase.bytes) return;
    phase.missing = phase.expected;
    phase.parity ^= 1;
}

static void arrive(Phase& phase, int bytes) {
    if (!phase.missing) fail("more threads arrive at a barrier than it was made for");
    --phase.missing;
    phase.bytes += bytes;
    end_if_complete(phase);
}

}  // namespace emulation

static void make_barrier(unsigned long long& barrier, int arrivals) {
    reinterpret_cast<emulation::Phase&>(barrier) = {(unsigned short)arrivals, (unsigned short)arrivals, 0, 0};
}

static void publish_barriers() {}

static void arrive(unsigned long long& barrier) { emulation::arrive(emulation::phase_of(barrier), 0); }

static void arrive_expecting(unsigned long long& barrier, int bytes) {
    if (bytes < 0 || bytes >= 1 << 20) emulation::fail("a barrier counts fewer than 2^20 bytes");
    emulation::arrive(emulation::phase_of(barrier), bytes);
}

static void wait_for_phase(unsigned long long& barrier, int parity) {
    emulation::Phase& phase = emulation::phase_of(barrier);
    emulation::wait_until([&phase, parity] { return phase.parity != parity; }, __LINE__);
}

template <int REGISTERS>
static void give_registers() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "what setmaxnreg takes");
}

template <int REGISTERS>
static void take_registers() {
    give_registers<REGISTERS>();
}

// -- the copy engine -------------------------------------------------------------------------------------------------

// Shared memory does not begin at address zero on a GPU either.
constexpr unsigned SHARED_AT = 1024;

static unsigned shared_address(const void* p) {
    return static_cast<const unsigned char*>(p) - dynamic_shared + SHARED_AT;
}

namespace emulation {

// What tests/emulation/tensor_maps.py writes. Axes are in the order c, w, h, d, n, of which those in between may lack.
struct Map {
    long long magic, im2col, axes, itemsize, address, size[5], stride[5], step[5], box[5], lower[3], upper[3];
};

static const Map& map_of(const void* opaque) {
    static const Map none{};
    const Map& map = **static_cast<const Map* const*>(opaque);
    if (map.magic != 0x74656e736f72) {
        fail("no tensor map");
        return none;  // whatever is there instead may say anything of sizes
    }
    if (reinterpret_cast<size_t>(opaque) % 64) fail("a tensor map at an address that is no multiple of 64");
    return map;
}

static unsigned char* shared_at(unsigned address) { return dynamic_shared + address - SHARED_AT; }

// The swizzle of 128 bytes, on addresses in shared memory.
static unsigned swizzled_address(unsigned address) { return address ^ (address / 128 % 8) * 16; }

static const unsigned char* element(const Map& map, const long long (&at)[5]) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(map.address);
    for (int axis = 0; axis < map.axes; ++axis) {
        if (at[axis] < 0 || at[axis] >= map.size[axis]) return nullptr;
        from += at[axis] * map.stride[axis];
    }
    return from;
}

// A copy that is under way: its bytes, in order, row by row of 128.
static void begin_copy(void* to, std::vector<unsigned char> bytes, unsigned long long& barrier) {
    const unsigned address = shared_address(to);
    if (address % 1024) fail("a swizzled tile at an address that is no multiple of 1024");
    memset(to, 0xff, bytes.size());
    Phase& phase = phase_of(barrier);
    outstanding.push_back([address, bytes, &phase] {
        for (size_t i = 0; i < bytes.size(); ++i) *shared_at(swizzled_address(address + i)) = bytes[i];
        phase.bytes -= bytes.size();
        end_if_complete(phase);
    });
}

static void append(std::vector<unsigned char>& bytes, const Map& map, const long long (&at)[5]) {
    const unsigned char* from = element(map, at);
    for (int i = 0; i < map.itemsize; ++i) bytes.push_back(from ? from[i] : 0);
}

}  // namespace emulation

template <class Map, class Place>
static void copy_pixels(void* to, const Map& opaque, unsigned long long& barrier, int axes, int channel, const Place& pixel) {
    const emulation::Map& map = emulation::map_of(&opaque);
    const int images = axes - 1, spatial = axes - 2;
    if (!map.im2col || map.axes != axes) emulation::fail("a copy of pixels with the map of something else");
    long long at[5] = {};
    for (int i = 0; i < spatial; ++i) {
        at[1 + i] = pixel.at[i];
        if (at[1 + i] < map.lower[i] || at[1 + i] >= map.size[1 + i] + map.upper[i])
            emulation::fail("pixels from outside of the map's box on");
        if (pixel.tap[i] >= 1 << 16 / spatial) emulation::fail("a tap too far away");
    }
    at[images] = pixel.n;
    std::vector<unsigned char> bytes;
    for (long long n = 0; n < map.box[1]; ++n) {
        for (long long c = 0; c < map.box[0]; ++c) {
            long long source[5];
            memcpy(source, at, sizeof at);
            source[0] = channel + c;
            for (int i = 0; i < spatial; ++i) source[1 + i] += pixel.tap[i];
            emulation::append(bytes, map, source);
        }
        int axis = 1;
        for (; axis < images; ++axis) {
            at[axis] += map.step[axis];
            if (at[axis] < map.size[axis] + map.upper[axis - 1]) break;
            at[axis] = map.lower[axis - 1];
        }
        if (axis == images) ++at[images];
    }
    emulation::begin_copy(to, bytes, barrier);
}

template <class Map>
static void copy_box(void* to, const Map& opaque, unsigned long long& barrier, int i, int j, int k) {
    const emulation::Map& map = emulation::map_of(&opaque);
    if (map.im2col || map.axes != 3) emulation::fail("a copy of a box with the map of something else");
    std::vector<unsigned char> bytes;
    for (long long c = k; c < k + map.box[2]; ++c)
        for (long long b = j; b < j + map.box[1]; ++b)
            for (long long a = i; a < i + map.box[0]; ++a) emulation::append(bytes, map, {a, b, c, 0, 0});
    emulation::begin_copy(to, bytes, barrier);
}

// -- products --------------------------------------------------------------------------------------------------------

namespace emulation {

// Row `row` of an operand, as its descriptor says, of which a product takes 32 bytes.
static void read_row(unsigned long long descriptor, unsigned row, unsigned char (&to)[32]) {
    const unsigned start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("only the swizzle of 128 bytes is emulated, from its start on");
    for (unsigned chunk = 0; chunk < 2; ++chunk) {
        const unsigned address = swizzled_address(start + row / 8 * eight_rows + row % 8 * 128 + chunk * 16);
        memcpy(to + chunk * 16, shared_at(address), 16);
    }
}

// What a thread has of a product: rows g and g + 8 of its warp, and two of each eight columns.
template <class T, class Wide, class Sum>
static void multiply_share(Sum* c, unsigned registers, unsigned long long a, unsigned long long b,
                           Wide (*widen)(T), Sum (*narrow)(Wide)) {
    constexpr unsigned DEPTH = 32 / sizeof(T);
    const unsigned warp = running / WARP % 4, g = lane() / 4, t = lane() % 4;
    auto row_of = [widen](unsigned long long descriptor, unsigned row, Wide (&values)[DEPTH]) {
        unsigned char bytes[32];
        read_row(descriptor, row, bytes);
        for (unsigned k = 0; k < DEPTH; ++k) {
            T v;
            memcpy(&v, bytes + k * sizeof(T), sizeof v);
            values[k] = widen(v);
        }
    };
    Wide x[2][DEPTH], w[DEPTH];
    for (unsigned half = 0; half < 2; ++half) row_of(a, warp * 16 + g + half * 8, x[half]);
    for (unsigned column = 0; column < registers / 2; ++column) {
        row_of(b, column / 2 * 8 + t * 2 + column % 2, w);
        for (unsigned half = 0; half < 2; ++half) {
            Sum& to = c[column / 2 * 4 + half * 2 + column % 2];
            Wide sum = to;
            for (unsigned k = 0; k < DEPTH; ++k) sum += x[half][k] * w[k];
            to = narrow(sum);
        }
    }
}

// Begin a product: `compute` reads shared memory and updates a copy of c when the product is waited for.
template <class Sum, int REGISTERS, class Compute>
static void begin_product(Sum (&c)[REGISTERS], unsigned long long a, unsigned long long b, Compute compute) {
    Fiber& f = fibers[running];
    if (!f.products_may_begin) fail("a product without begin_products() since the last wait");
    agree_in_warpgroup(a, b);
    Sums* sums = nullptr;
    for (auto& known : f.sums)
        if (known->target == c) sums = known.get();
    if (!sums) {
        f.sums.emplace_back(new Sums{c, std::vector<char>(sizeof c), 0});
        sums = f.sums.back().get();
        memcpy(sums->bytes.data(), c, sizeof c);
        memset(c, 0xff, sizeof c);
    }
    ++sums->pending;
    f.products.push_back({sums, f.product_groups, [sums, compute] { compute(reinterpret_cast<Sum*>(sums->bytes.data())); }});
}

}  // namespace emulation

static void begin_products() { emulation::fibers[emulation::running].products_may_begin = true; }

static void commit_products() { ++emulation::fibers[emulation::running].product_groups; }

template <int LATER>
static void wait_for_products() {
    emulation::complete_products(emulation::fibers[emulation::running], LATER);
    __syncwarp();
}

static void receive(float&) {}
static void receive(int&) {}

template <int REGISTERS>
static void wgmma_f16(float (&c)[REGISTERS], unsigned long long a, unsigned long long b) {
    emulation::begin_product(c, a, b, [=](float* sums) {
        emulation::multiply_share<unsigned short, double, float>(
            sums, REGISTERS, a, b, [](unsigned short v) { return (double)widen_half(v); }, emulation::truncated);
    });
}

template <int REGISTERS>
static void wgmma_bf16(float (&c)[REGISTERS], unsigned long long a, unsigned long long b) {
    emulation::begin_product(c, a, b, [=](float* sums) {
        emulation::multiply_share<unsigned short, double, float>(
            sums, REGISTERS, a, b, [](unsigned short v) { return (double)emulation::widen_bfloat16(v); },
            emulation::truncated);
    });
}

template <int REGISTERS>
static void wgmma_tf32(float (&c)[REGISTERS], unsigned long long a, unsigned long long b) {
    emulation::begin_product(c, a, b, [=](float* sums) {
        emulation::multiply_share<unsigned, double, float>(
            sums, REGISTERS, a, b, [](unsigned v) { return (double)emulation::widen_tf32(v); }, emulation::truncated);
    });
}

template <int REGISTERS>
static void wgmma_s8(int (&c)[REGISTERS], unsigned long long a, unsigned long long b) {
    emulation::begin_product(c, a, b, [=](int* sums) {
        emulation::multiply_share<signed char, unsigned, int>(
            sums, REGISTERS, a, b, [](signed char v) { return (unsigned)(int)v; }, [](unsigned v) { return (int)v; });
    });
}
