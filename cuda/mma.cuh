// Matrix products of a warp on tensor cores, and how their operands come from shared memory.
//
// A warp multiplies a 16 x K matrix a by a K x 8 matrix b, where K elements are 32 bytes: 16 halves, 32 small integers or
// 8 float32 of which the cores read 19 bits (TF32). Every lane holds a part of each, a fragment, in registers of 4 bytes.
// With lane = 4 * g + t they are, whatever the dtype (PTX ISA, "Matrix multiply-accumulate operation using mma"):
//
//   a[0], a[1]   bytes 4t..4t+3 of rows g and g + 8        a[2], a[3]   the same, 16 bytes further on
//   b[0], b[1]   bytes 4t..4t+3 and 16 bytes further on, of column g
//   c[0], c[1]   row g, columns 2t and 2t + 1              c[2], c[3]   the same of row g + 8
//
// Each wrapper holds one PTX instruction; its twin in tests/emulation/warp_operations.h does the same on the CPU.
#pragma once
#include "copies.cuh"
#include "types.cuh"

#ifdef __CUDACC__
// Four matrices of 8 rows of 16 bytes: lane i gives the address of row i % 8 of matrix i / 8, and gets bytes 4t..4t+3 of
// row g of each.
__device__ inline void load_matrices(unsigned int (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b. One instruction from sm_80 on; Turing's are smaller.
__device__ inline void mma_f16(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; ++half)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

// Integers of 8 bits, signed or not; the type is part of the instruction's name.
#if __CUDA_ARCH__ >= 800
#define MMA_OF_BYTES(name, type)                                                                                       \
    __device__ inline void name(int (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {                 \
        asm("mma.sync.aligned.m16n8k32.row.col.s32." type "." type ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "         \
            "{%8, %9}, {%0, %1, %2, %3};"                                                                              \
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                           \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                       \
    }
#else
#define MMA_OF_BYTES(name, type)                                                                                       \
    __device__ inline void name(int (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {                 \
        for (int part = 0; part < 4; ++part) {                                                                         \
            const int rows = part % 2, half = part / 2;                                                                \
            asm("mma.sync.aligned.m8n8k16.row.col.s32." type "." type ".s32 {%0, %1}, {%2}, {%3}, {%0, %1};"           \
                : "+r"(c[2 * rows]), "+r"(c[2 * rows + 1])                                                             \
                : "r"(a[part]), "r"(b[half]));                                                                         \
        }                                                                                                              \
    }
#endif
MMA_OF_BYTES(mma_s8, "s8")
MMA_OF_BYTES(mma_u8, "u8")
#undef MMA_OF_BYTES

#if __CUDA_ARCH__ >= 800
__device__ inline void mma_bf16(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_tf32(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To 10 bits of fraction, to nearest, ties away from zero. The largest numbers become infinity.
__device__ inline float round_to_tf32(float v) {
    unsigned int bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return float_of(bits);
}
#endif
#endif
