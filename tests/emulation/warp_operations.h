// What a warp does together, and copies that run beside the program: the twins of the PTX in cuda/copies.cuh and
// cuda/mma.cuh. Layouts of fragments are those of the PTX ISA, the arithmetic that of the cores as it was measured
// (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7, 2021):
// exact products, and sums that are truncated.
#pragma once

namespace emulation {

static bool aligned(const void* p, unsigned bytes) { return reinterpret_cast<size_t>(p) % bytes == 0; }

// What every lane of the warp offers at this moment.
template <class T>
struct Warp {
    T lane[WARP];
};

template <class T>
static Warp<T> gather(const T& mine, int line) {
    static_assert(sizeof(T) <= sizeof(Fiber::slot), "a lane offers at most what its slot holds");
    const unsigned first = running / WARP * WARP;
    memcpy(fibers[running].slot, &mine, sizeof(T));
    wait(AT_WARP, line);
    Warp<T> all;
    for (unsigned i = 0; i < WARP; ++i) memcpy(&all.lane[i], fibers[first + i].slot, sizeof(T));
    wait(AT_WARP, line);
    return all;
}

// To float32, towards zero.
static float truncated(double v) {
    const float nearest = (float)v;
    return std::isfinite(nearest) && std::fabs((double)nearest) > std::fabs(v) ? std::nextafter(nearest, 0.0f) : nearest;
}

static float widen_bfloat16(unsigned short bits) { return float_of((unsigned)bits << 16); }
static float widen_tf32(unsigned bits) { return float_of(bits & 0xffffe000); }  // the cores look at no more

struct Operands {
    unsigned a[4], b[2];
};

// c += a b for K elements of type T, of which `widen` makes numbers to multiply in Wide.
template <class T, class Wide, class Sum>
static void multiply(Sum (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Wide (*widen)(T), Sum (*narrow)(Wide),
                     int line) {
    constexpr unsigned WORD = 4 / sizeof(T);
    Operands mine;
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    const Warp<Operands> warp = gather(mine, line);
    const unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned lower = i / 2, column = 2 * t + i % 2;
        Wide sum = c[i];
        for (unsigned half = 0; half < 2; ++half)
            for (unsigned from = 0; from < 4; ++from) {
                T x[WORD], w[WORD];
                memcpy(x, &warp.lane[4 * g + from].a[2 * half + lower], 4);
                memcpy(w, &warp.lane[4 * column + from].b[half], 4);
                for (unsigned e = 0; e < WORD; ++e) sum += widen(x[e]) * widen(w[e]);
            }
        c[i] = narrow(sum);
    }
}

}  // namespace emulation

static void load_matrices(unsigned (&to)[4], const void* row) {
    if (!emulation::aligned(row, 16)) emulation::fail("ldmatrix from an address that is no multiple of 16");
    const auto rows = emulation::gather(row, __LINE__);
    const unsigned g = emulation::lane() / 4, t = emulation::lane() % 4;
    for (unsigned i = 0; i < 4; ++i) memcpy(&to[i], static_cast<const char*>(rows.lane[8 * i + g]) + 4 * t, 4);
}

static void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulation::multiply<unsigned short, double, float>(
        c, a, b, [](unsigned short v) { return (double)widen_half(v); }, emulation::truncated, __LINE__);
}

static void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulation::multiply<unsigned short, double, float>(
        c, a, b, [](unsigned short v) { return (double)emulation::widen_bfloat16(v); }, emulation::truncated, __LINE__);
}

static void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulation::multiply<unsigned, double, float>(
        c, a, b, [](unsigned v) { return (double)emulation::widen_tf32(v); }, emulation::truncated, __LINE__);
}

static void mma_s8(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulation::multiply<signed char, unsigned, int>(
        c, a, b, [](signed char v) { return (unsigned)(int)v; }, [](unsigned v) { return (int)v; }, __LINE__);
}

static void mma_u8(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulation::multiply<unsigned char, unsigned, int>(
        c, a, b, [](unsigned char v) { return (unsigned)v; }, [](unsigned v) { return (int)v; }, __LINE__);
}

static float round_to_tf32(float v) {
    const unsigned bits = bits_of(v);
    return v != v ? float_of(0x7fffffff) : float_of((bits + 0x1000) & 0xffffe000);  // away from zero: size is the fraction
}

// An asynchronous copy reads when it begins and writes when it is waited for: until then its place holds NaN.
template <int BYTES>
static void copy_async(void* to, const void* from, bool inside) {
    if (!emulation::aligned(to, BYTES) || (inside && !emulation::aligned(from, BYTES)))
        emulation::fail("an asynchronous copy between addresses that are no multiples of its size");
    emulation::Copy copy{to, BYTES, emulation::fibers[emulation::running].groups, {}};
    if (inside) memcpy(copy.bytes, from, BYTES);
    memset(to, 0xff, BYTES);
    emulation::fibers[emulation::running].copies.push_back(copy);
}

static void commit_copies() { ++emulation::fibers[emulation::running].groups; }

template <int LATER>
static void wait_for_copies() {
    emulation::complete(emulation::fibers[emulation::running], LATER);
}
