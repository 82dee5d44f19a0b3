// What happens to a sum before it is written: act(sum + bias + residual).
#pragma once
#include "geometry.cuh"
#include "types.cuh"

// Host record: EPILOGUE in fastconv/gpu/arguments.py. A null pointer stands for an absent bias or residual.
struct Epilogue {
    const ACCUMULATOR* bias;  // one for each channel of all groups
    View<const RESULT> residual;
    long long activation;
    double a, b;
};

// The order of Activation.KINDS in fastconv/problem.py.
enum ActivationKind { NONE, CLIP, LEAKY_RELU, SIGMOID, TANH, SILU, GELU };

template <class T, int N, class F>
__device__ inline void replace(Vector<T, N>& v, const F& f) {
#pragma unroll
    for (int i = 0; i < N; ++i) v.lane[i] = f(v.lane[i]);
}

// Ask once for all of a vector which activation it is.
template <class T, int N>
__device__ inline void activate(Vector<T, N>& v, const Epilogue& e) {
    const T a = (T)e.a, b = (T)e.b;
    switch (e.activation) {
        case CLIP: return replace(v, [=](T x) { return x < a ? a : x > b ? b : x; });  // in this form NaN goes through
        case LEAKY_RELU: return replace(v, [=](T x) { return x < 0 ? a * x : x; });
        case SIGMOID: return replace(v, [](T x) { return 1 / (1 + exp(-x)); });
        case TANH: return replace(v, [](T x) { return tanh(x); });
        case SILU: return replace(v, [](T x) { return x / (1 + exp(-x)); });
        case GELU: return replace(v, [](T x) { return x * (T)0.5 * erfc(x * (T)-0.70710678118654752440); });
    }
}

// A bound as an integer; what lies outside the integers limits nothing.
__device__ inline int64 saturate(double bound) {
    constexpr int64 most = 0x7fffffffffffffff;
    return bound >= 9223372036854775808.0 ? most : bound < -9223372036854775808.0 ? -most - 1 : (int64)bound;
}

template <int N>
__device__ inline void activate(Vector<int64, N>& v, const Epilogue& e) {
    if (e.activation != CLIP) return;
    const int64 a = saturate(e.a), b = saturate(e.b);
    replace(v, [=](int64 x) { return x < a ? a : x > b ? b : x; });
}

template <int N>
__device__ inline void activate(Vector<int, N>& v, const Epilogue& e) {
    if (e.activation != CLIP) return;
    const int64 a = saturate(e.a), b = saturate(e.b);
    replace(v, [=](int x) { return x < a ? (int)a : x > b ? (int)b : x; });
}

template <class T, int N>
__device__ inline void activate(Vector<Complex<T>, N>&, const Epilogue&) {}

// Finish N sums whose outputs lie together and write them at once: neighbouring channels from `channel` on, which counts
// through all groups, or neighbouring positions of that one. The residual lies as the outputs do; they, and along channels
// the bias, begin at a multiple of such a vector.
template <int N>
__device__ inline void finish(const Epilogue& e, Vector<ACCUMULATOR, N> sums, long long channel, bool along_channels,
                              long long residual_at, RESULT* to) {
    if (e.bias) {
        Vector<ACCUMULATOR, N> bias;
        if (along_channels)
            bias = *reinterpret_cast<const Vector<ACCUMULATOR, N>*>(e.bias + channel);
        else
#pragma unroll
            for (int i = 0; i < N; ++i) bias.lane[i] = e.bias[channel];
#pragma unroll
        for (int i = 0; i < N; ++i) sums.lane[i] = add(sums.lane[i], bias.lane[i]);
    }
    if (e.residual.data) {
        const auto residual = *reinterpret_cast<const Vector<RESULT, N>*>(e.residual.data + residual_at);
#pragma unroll
        for (int i = 0; i < N; ++i) sums.lane[i] = add(sums.lane[i], load(residual.lane[i]));
    }
    activate(sums, e);
    Vector<RESULT, N> results;
#pragma unroll
    for (int i = 0; i < N; ++i) store(results.lane[i], sums.lane[i]);
    *reinterpret_cast<Vector<RESULT, N>*>(to) = results;
}

__device__ inline void finish(const Epilogue& e, ACCUMULATOR sum, long long channel, long long residual_at, RESULT& to) {
    finish(e, Vector<ACCUMULATOR, 1>{sum}, channel, true, residual_at, &to);
}

// N neighbouring sums from shared memory, 16 bytes at a time; those from `lane` on begin at `at(lane)`.
template <int N, class At>
__device__ inline Vector<ACCUMULATOR, N> read_sums(const ACCUMULATOR* band, const At& at) {
    constexpr int READ = N * sizeof(ACCUMULATOR) < 16 ? N : 16 / sizeof(ACCUMULATOR);
    Vector<ACCUMULATOR, N> sums;
#pragma unroll
    for (int lane = 0; lane < N; lane += READ) {
        const auto read = *reinterpret_cast<const Vector<ACCUMULATOR, READ>*>(band + at(lane));
#pragma unroll
        for (int i = 0; i < READ; ++i) sums.lane[lane + i] = read.lane[i];
    }
    return sums;
}
