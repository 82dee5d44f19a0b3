// Fragments of one dtype and their product.
//
// float32 goes to the cores as TF32, numbers of 11 bits: rounded, or (SPLIT) as a sum of two such numbers. v - high has
// 13 bits at most, of which low loses one: v = high + low up to 2^-23 |v|. Of the four products of two such sums three
// are computed, because low * low is less than 2^-22 of the whole. The cores truncate sums instead of rounding them,
// which over a long sum would add up; so the cores sum each step's products from zero, and an ordinary, rounded addition
// adds them to the rest (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the
// FP32 theoretical peak performance", Int. J. High Perform. Comput. Appl. 36, 2022). Infinities and NaN are the low half
// of a one with their sign: every product that should have them has them once, and none has infinity times zero.
#pragma once
#include "mma.cuh"

constexpr int PARTS = SPLIT ? 2 : 1;

template <int REGISTERS>
struct Fragment {
    unsigned int part[PARTS][REGISTERS];
};
using FragmentA = Fragment<4>;
using FragmentB = Fragment<2>;

// -- refine: what came from shared memory, into what the cores take -------------------------------------------------

template <int REGISTERS, class T>
__device__ inline void refine(Fragment<REGISTERS>&, T) {}

#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 800
__device__ inline bool is_finite(float v) { return (bits_of(v) & 0x7f800000) != 0x7f800000; }

// The nearest TF32 number; the finite one below where that would be infinity.
__device__ inline float tf32_of(float v) {
    const float nearest = round_to_tf32(v);
    return is_finite(v) && !is_finite(nearest) ? float_of(bits_of(v) & 0xffffe000) : nearest;
}

template <int REGISTERS>
__device__ inline void refine(Fragment<REGISTERS>& f, float32) {
#pragma unroll
    for (int i = 0; i < REGISTERS; ++i) {
        const float v = float_of(f.part[0][i]), high = tf32_of(v);
        if constexpr (SPLIT) {
            f.part[0][i] = is_finite(v) ? bits_of(high) : bits_of(1) | (bits_of(v) & 0x80000000);
            f.part[1][i] = is_finite(v) ? bits_of(tf32_of(v - high)) : bits_of(v);
        } else {
            f.part[0][i] = bits_of(high);
        }
    }
}
#endif

// -- multiply: c += a b ----------------------------------------------------------------------------------------------

__device__ inline void multiply(float (&c)[4], const FragmentA& a, const FragmentB& b, float16) {
    mma_f16(c, a.part[0], b.part[0]);
}

__device__ inline void multiply(int (&c)[4], const FragmentA& a, const FragmentB& b, int8) {
    mma_s8(c, a.part[0], b.part[0]);
}

__device__ inline void multiply(int (&c)[4], const FragmentA& a, const FragmentB& b, uint8) {
    mma_u8(c, a.part[0], b.part[0]);
}

#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 800
__device__ inline void multiply(float (&c)[4], const FragmentA& a, const FragmentB& b, bfloat16) {
    mma_bf16(c, a.part[0], b.part[0]);
}

__device__ inline void multiply(float (&c)[4], const FragmentA& a, const FragmentB& b, float32) {
    if constexpr (SPLIT) {
        float step[4] = {};
        mma_tf32(step, a.part[1], b.part[0]);
        mma_tf32(step, a.part[0], b.part[1]);
        mma_tf32(step, a.part[0], b.part[0]);
#pragma unroll
        for (int i = 0; i < 4; ++i) c[i] += step[i];
    } else {
        mma_tf32(c, a.part[0], b.part[0]);
    }
}
#endif
