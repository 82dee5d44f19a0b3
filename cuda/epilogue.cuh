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

template <class T>
__device__ inline T activate(T v, const Epilogue& e) {
    const T a = (T)e.a, b = (T)e.b;
    switch (e.activation) {
        case CLIP: return v < a ? a : v > b ? b : v;  // in this form NaN goes through
        case LEAKY_RELU: return v < 0 ? a * v : v;
        case SIGMOID: return 1 / (1 + exp(-v));
        case TANH: return tanh(v);
        case SILU: return v / (1 + exp(-v));
        case GELU: return v * (T)0.5 * erfc(v * (T)-0.70710678118654752440);
        default: return v;
    }
}

// A bound as an integer; what lies outside the integers limits nothing.
__device__ inline int64 saturate(double bound) {
    constexpr int64 most = 0x7fffffffffffffff;
    return bound >= 9223372036854775808.0 ? most : bound < -9223372036854775808.0 ? -most - 1 : (int64)bound;
}

__device__ inline int64 activate(int64 v, const Epilogue& e) {
    if (e.activation != CLIP) return v;
    const int64 a = saturate(e.a), b = saturate(e.b);
    return v < a ? a : v > b ? b : v;
}

__device__ inline int activate(int v, const Epilogue& e) { return (int)activate((int64)v, e); }

template <class T>
__device__ inline Complex<T> activate(Complex<T> v, const Epilogue&) {
    return v;
}

// Finish the sum of one output and write it. `channel` counts through all groups.
__device__ inline void finish(const Epilogue& e, ACCUMULATOR sum, long long channel, long long residual_at, RESULT& to) {
    if (e.bias) sum = add(sum, e.bias[channel]);
    if (e.residual.data) sum = add(sum, load(e.residual.data[residual_at]));
    store(to, activate(sum, e));
}
