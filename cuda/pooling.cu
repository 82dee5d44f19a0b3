// Pooling: every result is a fold, by OP, of the elements of its window.
//
// Hardly any arithmetic is done on what is read, so pooling takes the time that its memory takes, if finding addresses
// takes less. Threads walk over the results by adding digits: they divide when they begin, and then no more.
//
// `pool_thread` gives a thread LANES neighbouring channels of a result, which is as wide a load as they allow.
// `pool_warp` gives a warp one result, for long windows: its lanes share the window, and read a row of it together.
// `find_thread` also says where the maximum stands.
#include "digits.cuh"
#include "geometry.cuh"
#include "types.cuh"

// Host record: WINDOW in fastconv/pooling_problem.py.
struct Window {
    long long first, taps, span;
};

// Data is (n, g, d, h, w, c): channels are groups, or c if they come last.
struct Pooling {
    View<const STORAGE> x;
    View<STORAGE> y;
    View<long long> indices;
    const Window* windows[3];
    long long batch, groups, channels;
    long long size[3], count[3], dilation[3];
    long long divisor;  // instead of the windows' spans, unless it is 0
    double scale, exponent;
};

// What OP names: what a fold begins with, how it takes an element, how two folds join, and what is done at the end.
template <class T>
struct Max {
    __device__ static T begin(T element) { return element; }
    __device__ static T join(T most, T v) { return v > most || v != v ? v : most; }
    __device__ static T take(const Pooling&, T most, T v) { return join(most, v); }
    __device__ static T end(const Pooling&, T most, T) { return most; }
};

template <class T>
struct Mean {
    __device__ static T begin(T) { return 0; }
    __device__ static T join(T sum, T v) { return sum + v; }
    __device__ static T take(const Pooling&, T sum, T v) { return sum + v; }
    __device__ static T end(const Pooling& p, T sum, T span) { return sum * (T)p.scale / span; }
};

template <class T>
struct PowerMean : Mean<T> {
    __device__ static T power(T v, T exponent) {
        return exponent == 2 ? v * v : exponent == (T)0.5 ? sqrt(v) : pow(v, exponent);
    }
    __device__ static T take(const Pooling& p, T sum, T v) { return sum + power(v, (T)p.exponent); }
    __device__ static T end(const Pooling& p, T sum, T span) {
        return power(Mean<T>::end(p, sum, span), (T)(1 / p.exponent));
    }
};

using Op = OP<ACCUMULATOR>;

// Visits every result, or LENGTH channels of one: worker i numbers i, i + workers, i + 2 workers and so on.
struct Walk {
    const long long batch;
    const int length, radix[5];
    Digits<6, int> now, step;

    __device__ Walk(const Pooling& p, int length, int worker, int workers)
        : batch(p.batch), length(length),
          radix{(int)p.channels / length, (int)p.count[2], (int)p.count[1], (int)p.count[0], (int)p.groups} {
        now = digits_of<6>(worker, radix);
        step = digits_of<6>(workers, radix);
    }

    __device__ bool goes_on() const { return now.digit[5] < batch; }
    __device__ void next() { advance(now, step, radix); }
};

// One result, or the first of its channels, and the window that it is the fold of.
struct Result {
    long long n, g, d, h, w, c;
    Window deep, high, wide;

    __device__ Result(const Pooling& p, const Walk& walk)
        : n(walk.now.digit[5]), g(walk.now.digit[4]), d(walk.now.digit[3]), h(walk.now.digit[2]), w(walk.now.digit[1]),
          c((long long)walk.now.digit[0] * walk.length), deep(p.windows[0][d]), high(p.windows[1][h]),
          wide(p.windows[2][w]) {}

    __device__ const STORAGE* element(const Pooling& p, long long kd, long long kh, long long kw) const {
        return p.x.data + p.x.offset(n, g, deep.first + kd * p.dilation[0], high.first + kh * p.dilation[1],
                                     wide.first + kw * p.dilation[2], c);
    }
    __device__ STORAGE* target(const Pooling& p) const { return p.y.data + p.y.offset(n, g, d, h, w, c); }
    __device__ ACCUMULATOR span(const Pooling& p) const {
        return p.divisor ? (ACCUMULATOR)p.divisor : (ACCUMULATOR)wide.span * (ACCUMULATOR)(high.span * deep.span);
    }
};

__device__ inline int thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline int threads() { return gridDim.x * blockDim.x; }

extern "C" __global__ void __launch_bounds__(256, 2) pool_thread(const Pooling p) {
    using Lanes = Vector<STORAGE, LANES>;
    for (Walk walk(p, LANES, thread_number(), threads()); walk.goes_on(); walk.next()) {
        const Result result(p, walk);
        ACCUMULATOR held[LANES];
        const Lanes corner = *(const Lanes*)result.element(p, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < LANES; ++i) held[i] = Op::begin(load(corner.lane[i]));
        for (int kd = 0; kd < result.deep.taps; ++kd)
            for (int kh = 0; kh < result.high.taps; ++kh) {
                const STORAGE* x = result.element(p, kd, kh, 0);
                for (int kw = 0; kw < result.wide.taps; ++kw, x += p.dilation[2] * p.x.stride[4]) {
                    const Lanes met = *(const Lanes*)x;
#pragma unroll
                    for (int i = 0; i < LANES; ++i) held[i] = Op::take(p, held[i], load(met.lane[i]));
                }
            }
        Lanes folded;
        const ACCUMULATOR span = result.span(p);
#pragma unroll
        for (int i = 0; i < LANES; ++i) store(folded.lane[i], Op::end(p, held[i], span));
        *(Lanes*)result.target(p) = folded;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) pool_warp(const Pooling p) {
    constexpr int WARP = 32;
    const int lane = threadIdx.x % WARP;
    for (Walk walk(p, 1, thread_number() / WARP, threads() / WARP); walk.goes_on(); walk.next()) {
        const Result result(p, walk);
        // A gradient's windows may be empty: then there is nothing to divide by, and nothing to fold.
        const int wide = (int)result.wide.taps, high = (int)result.high.taps, deep = wide && high ? (int)result.deep.taps : 0;
        const int taps[] = {wide ? wide : 1, high ? high : 1};
        auto tap = digits_of<3>(lane, taps);
        const auto further = digits_of<3>((int)WARP, taps);
        ACCUMULATOR held = Op::begin(load(*result.element(p, 0, 0, 0)));
        for (; tap.digit[2] < deep; advance(tap, further, taps))
            held = Op::take(p, held, load(*result.element(p, tap.digit[2], tap.digit[1], tap.digit[0])));
        for (int mask = WARP / 2; mask > 0; mask /= 2) held = Op::join(held, __shfl_xor_sync(0xffffffff, held, mask));
        if (lane == 0) store(*result.target(p), Op::end(p, held, result.span(p)));
    }
}

// Of equal maxima the first one counts, of NaN the last.
extern "C" __global__ void __launch_bounds__(256, 2) find_thread(const Pooling p) {
    for (Walk walk(p, 1, thread_number(), threads()); walk.goes_on(); walk.next()) {
        const Result r(p, walk);
        ACCUMULATOR most{};
        long long found = -1;
        for (int kd = 0; kd < r.deep.taps; ++kd)
            for (int kh = 0; kh < r.high.taps; ++kh) {
                const long long d = r.deep.first + kd * p.dilation[0], h = r.high.first + kh * p.dilation[1];
                const STORAGE* x = r.element(p, kd, kh, 0);
                long long at = (d * p.size[1] + h) * p.size[2] + r.wide.first;
#pragma unroll 2
                for (int kw = 0; kw < r.wide.taps; ++kw, x += p.dilation[2] * p.x.stride[4], at += p.dilation[2]) {
                    const ACCUMULATOR v = load(*x);
                    if (found >= 0 && !(v > most) && v == v) continue;
                    most = v;
                    found = at;
                }
            }
        store(*r.target(p), most);
        p.indices.data[p.indices.offset(r.n, r.g, r.d, r.h, r.w, r.c)] = found;
    }
}
