// The element types, by their NumPy names, and the few operations that kernels need on them.
//
// A kernel is compiled for one dtype: STORAGE (operands), RESULT and ACCUMULATOR are macros that hold such names.
#pragma once

using float32 = float;
using float64 = double;
using int8 = signed char;
using uint8 = unsigned char;
using int16 = short;
using int32 = int;
using int64 = long long;

struct float16 {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

template <class T>
struct alignas(2 * sizeof(T)) Complex {
    T real, imag;
};

using complex64 = Complex<float>;
using complex128 = Complex<double>;

// Some consecutive elements, moved by one instruction where they fill at most 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector {
    T lane[N];
};

// Inline PTX rather than cuda_fp16.h: the program then needs no include path, which NVRTC finds only on some systems.
#ifdef __CUDACC__
__device__ inline float widen_half(unsigned short bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}

__device__ inline unsigned short narrow_half(float v) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}

__device__ inline float float_of(unsigned int bits) { return __uint_as_float(bits); }
__device__ inline unsigned int bits_of(float v) { return __float_as_uint(v); }
#endif

// -- load: storage to accumulator; store: accumulator to result ----------------------------------------------------

__device__ inline float load(float v) { return v; }
__device__ inline double load(double v) { return v; }
__device__ inline float load(float16 v) { return widen_half(v.bits); }
__device__ inline float load(bfloat16 v) { return float_of((unsigned int)v.bits << 16); }
__device__ inline int load(int8 v) { return v; }
__device__ inline int load(uint8 v) { return v; }
__device__ inline int load(int16 v) { return v; }
__device__ inline int load(int32 v) { return v; }
__device__ inline int64 load(int64 v) { return v; }
template <class T>
__device__ inline Complex<T> load(Complex<T> v) {
    return v;
}

template <class T, class V>
__device__ inline void store(T& to, V v) {
    to = (T)v;
}

__device__ inline void store(float16& to, float v) { to.bits = narrow_half(v); }

__device__ inline void store(bfloat16& to, float v) {
    const unsigned int bits = bits_of(v);
    const unsigned int half_even = 0x7fff + (bits >> 16 & 1);  // round to nearest, ties to even
    to.bits = (unsigned short)(v != v ? bits >> 16 | 0x40 : (bits + half_even) >> 16);
}

// -- arithmetic; integers go through unsigned, where wrapping round is defined -------------------------------------

template <class T>
__device__ inline T add(T a, T b) {
    return a + b;
}
__device__ inline int add(int a, int b) { return (int)((unsigned int)a + (unsigned int)b); }
__device__ inline int64 add(int64 a, int64 b) { return (int64)((unsigned long long)a + (unsigned long long)b); }
template <class T>
__device__ inline Complex<T> add(Complex<T> a, Complex<T> b) {
    return {a.real + b.real, a.imag + b.imag};
}

template <class T>
__device__ inline T multiply_add(T a, T b, T sum) {
    return a * b + sum;
}
__device__ inline int multiply_add(int a, int b, int sum) {
    return (int)((unsigned int)a * (unsigned int)b + (unsigned int)sum);
}
__device__ inline int64 multiply_add(int64 a, int64 b, int64 sum) {
    return (int64)((unsigned long long)a * (unsigned long long)b + (unsigned long long)sum);
}
template <class T>
__device__ inline Complex<T> multiply_add(Complex<T> a, Complex<T> b, Complex<T> sum) {
    return {a.real * b.real - a.imag * b.imag + sum.real, a.real * b.imag + a.imag * b.real + sum.imag};
}
